# upernet_arm_b.py, but from the network trained with labels only ("supervised MambaMLP-B", four scans): the baseline
# without autoregressive pretraining. Paper, Table 4: 45.3 mIoU.
#
#   bash tools/dist_train.sh seg_configs/upernet_mambamlp_b.py 8
#
# Batch 16 = 8 GPUs x 2 crops of 512 x 512; 160,000 iterations.
_base_ = "upernet_arm_b.py"
model = dict(
    backbone=dict(
        cls_token="middle",  # as in the classifier; scanned, but not part of the maps
        init_cfg=dict(checkpoint="checkpoints/mambamlp_b_in1k.pth"),
    )
)
