# UperNet on ARM-Ti with narrow heads, for small machines.
_base_ = "upernet_arm.py"
model = dict(
    backbone=dict(
        arch="tiny",
        drop_path_rate=0.0,  # too few iterations to need it
        init_cfg=dict(checkpoint="checkpoints/arm_ti_pretrain.pth"),
    ),
    neck=dict(in_channels=192, norm_cfg=dict(type="BN")),
    decode_head=dict(in_channels=[192] * 4, channels=128, norm_cfg=dict(type="BN")),
    auxiliary_head=dict(in_channels=192, channels=64, norm_cfg=dict(type="BN")),
)
