# UperNet with ARM-L (1024 wide, 24 blocks). No dense-prediction result has been published for ARM-L.
#
#   bash tools/dist_train.sh seg_configs/upernet_arm_l.py 8
#
# Batch 16 = 8 GPUs x 2 crops of 512 x 512; 160,000 iterations.
# Drop path 0.3 is our choice: the value of ARM-L's ImageNet finetuning.
# If memory runs out: --cfg-options model.backbone.with_cp=full (recomputes whole blocks in the backward).
_base_ = [
    "_base_/upernet_arm.py",
    "_base_/ade20k.py",
    "_base_/schedule_160k.py",
    "_base_/runtime.py",
]
model = dict(
    backbone=dict(
        arch="large",
        drop_path_rate=0.3,
        with_cp="selective",
        init_cfg=dict(checkpoint="checkpoints/arm_l_pretrain.pth"),
    ),
    neck=dict(in_channels=1024),
    decode_head=dict(in_channels=[1024] * 4),
    auxiliary_head=dict(in_channels=1024),
)
