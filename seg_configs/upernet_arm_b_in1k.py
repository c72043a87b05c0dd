# upernet_arm_b.py, but from the ImageNet-1K classifier (AR-pretrained, then finetuned with four scans). The paper does
# not say which of the two its segmentor starts from.
#
#   bash tools/dist_train.sh seg_configs/upernet_arm_b_in1k.py 8
#
# Batch 16 = 8 GPUs x 2 crops of 512 x 512; 160,000 iterations.
_base_ = "upernet_arm_b.py"
model = dict(
    backbone=dict(
        cls_token="middle",  # as in the classifier; scanned, but not part of the maps
        init_cfg=dict(checkpoint="checkpoints/arm_b_in1k.pth"),
    )
)
