# As upernet_arm_b.py, from the same network trained with labels only ("supervised MambaMLP-B", four
# scans): the paper's baseline without autoregressive pretraining (Table 4: 45.3 mIoU there).
#
#   bash tools/dist_train.sh seg_configs/upernet_mambamlp_b.py 8
#
# Batch 16 = 8 GPUs x 2 crops of 512 x 512; 160,000 iterations.
_base_ = "upernet_arm_b.py"
model = dict(
    backbone=dict(
        cls_token="middle",  # the classifier's, carried along in its place; not in the maps
        init_cfg=dict(checkpoint="checkpoints/mambamlp_b_in1k.pth"),
    )
)
