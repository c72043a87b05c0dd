# UperNet on ARM-B: four stride-16 maps -> pyramid with strides 4, 8, 16, 32 -> mmseg's UPerHead and auxiliary FCN head.
# SyncBN throughout, as in XCiT, BEiT and MAE; it needs a total batch of about 16. Without a GPU tools/train.py replaces
# it by BN (by GN for a batch of 1). For one GPU with few images use upernet_arm_b_gn.py.
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],  # ImageNet's, in 0..255, as in pretraining
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(512, 512),  # training crops of smaller images are padded to this
        pad_val=0,
        seg_pad_val=255,
        # Sizes that are not multiples of 16 would be padded inside the backbone, and the head would treat the padding
        # as part of the image. Padding added here is removed again.
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type="ARM",
        arch="base",
        scans=4,  # an AR-pretrained checkpoint has one scan; it is copied to all four
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
