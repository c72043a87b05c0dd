# mask_rcnn_arm_b.py, but from the network trained with labels only ("supervised MambaMLP-B", four scans): the baseline
# without autoregressive pretraining. The paper reports no detection result for it.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_mambamlp_b.py 8
#
# Batch 16 = 8 GPUs x 2 images; 36 epochs of 7,330 iterations.
_base_ = "mask_rcnn_arm_b.py"
model = dict(
    backbone=dict(
        cls_token="middle",  # as in the classifier; scanned, but not part of the maps
        init_cfg=dict(checkpoint="checkpoints/mambamlp_b_in1k.pth"),
    )
)
