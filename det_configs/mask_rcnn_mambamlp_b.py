# As mask_rcnn_arm_b.py, from the same network trained with labels only ("supervised MambaMLP-B",
# four scans): the baseline without autoregressive pretraining. The paper gives no detection result
# for it.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_mambamlp_b.py 8
#
# Batch 16 = 8 GPUs x 2 images; 7,330 iterations an epoch, 36 epochs.
_base_ = "mask_rcnn_arm_b.py"
model = dict(
    backbone=dict(
        cls_token="middle",  # the classifier's, carried along in its place; not in the maps
        init_cfg=dict(checkpoint="checkpoints/mambamlp_b_in1k.pth"),
    )
)
