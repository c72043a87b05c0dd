# UperNet with ARM-H (1536 wide, 24 blocks). No dense-prediction result has been published for ARM-H.
#
#   bash tools/dist_train.sh seg_configs/upernet_arm_h.py 8
#
# Batch 16 = 8 GPUs x 2 crops of 512 x 512; 160,000 iterations.
# Drop path 0.4 is our choice, one step above ARM-L's 0.3.
# If memory runs out: --cfg-options model.backbone.with_cp=full (recomputes whole blocks in the backward).
_base_ = [
    "_base_/upernet_arm.py",
    "_base_/ade20k.py",
    "_base_/schedule_160k.py",
    "_base_/runtime.py",
]
model = dict(
    backbone=dict(
        arch="huge",
        drop_path_rate=0.4,
        with_cp="selective",
        init_cfg=dict(checkpoint="checkpoints/arm_h_pretrain.pth"),
    ),
    neck=dict(in_channels=1536),
    decode_head=dict(in_channels=[1536] * 4),
    auxiliary_head=dict(in_channels=1536),
)
