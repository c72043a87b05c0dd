# As mask_rcnn_arm_b.py, from the ImageNet-1K classifier (AR-pretrained, then finetuned with four
# scans). The paper does not say from which of the two its detector starts.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_arm_b_in1k.py 8
#
# Batch 16 = 8 GPUs x 2 images; 7,330 iterations an epoch, 36 epochs.
_base_ = "mask_rcnn_arm_b.py"
model = dict(
    backbone=dict(
        cls_token="middle",  # the classifier's, carried along in its place; not in the maps
        init_cfg=dict(checkpoint="checkpoints/arm_b_in1k.pth"),
    )
)
