# UperNet with ARM-S (384 wide, 12 blocks): our own size for small machines, not in the paper.
#
#   bash tools/dist_train.sh seg_configs/upernet_arm_s.py 8
#
# Batch 16 = 8 GPUs x 2 crops of 512 x 512; 160,000 iterations.
_base_ = [
    "_base_/upernet_arm.py",
    "_base_/ade20k.py",
    "_base_/schedule_160k.py",
    "_base_/runtime.py",
]
model = dict(
    backbone=dict(
        arch="small",
        init_cfg=dict(checkpoint="checkpoints/arm_s_pretrain.pth"),
    ),
    neck=dict(in_channels=384),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
