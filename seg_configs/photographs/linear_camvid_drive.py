# Linear probe on CamVid: ARM-Ti is frozen, and one linear classifier reads its four maps together, patch by patch.
#   python tools/train.py seg_configs/photographs/linear_camvid_drive.py --amp
_base_ = ["./upernet_camvid_drive.py"]

model = dict(
    backbone=dict(frozen_stages=12),  # all but the output norms, which a linear classifier could absorb
    neck=None,
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=[192] * 4,
        in_index=[0, 1, 2, 3],
        input_transform="resize_concat",
        channels=768,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=11,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False),
    ),
    auxiliary_head=None,
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))  # twice UperNet's: only the classifier is trained
