# UperNet on ARM-B: four stride-16 maps -> pyramid of strides 4, 8, 16, 32 -> mmseg's UPerHead and
# auxiliary FCN head. SyncBN throughout (XCiT, BEiT, MAE), which needs a batch of about 16 over all
# GPUs; tools/train.py turns it into BN where there is no GPU. For one GPU with a few images:
# upernet_arm_b_gn.py.
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],  # ImageNet's, as in pretraining, on 0..255
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(512, 512),  # training crops of smaller images are padded to this
        pad_val=0,
        seg_pad_val=255,
        # Other sizes than multiples of 16 would be padded inside the backbone, and the head, not
        # knowing, would squeeze the padding into the picture. Padded here, it is cut off again.
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type="ARM",
        arch="base",
        scans=4,  # an AR-pretrained checkpoint has one, which is copied to all four
        drop_path_rate=0.1,
        # from scratch: --cfg-options model.backbone.init_cfg=None
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/arm_b_pretrain.pth"),
    ),
    neck=dict(type="ARMPyramid", in_channels=768, norm_cfg=dict(type="SyncBN")),
    decode_head=dict(
        type="UPerHead",
        in_channels=[768] * 4,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type="SyncBN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=768,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type="SyncBN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
    ),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
