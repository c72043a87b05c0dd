# ARM with a linear head on the pooled tokens (ARM section 4.2). It scans four times; the class token in the middle of
# the sequence is scanned, but the head does not read it (reference code: --global_pool).
model = dict(
    type="ARMClassifier",
    arch="base",
    img_size=224,
    num_classes=1000,
    cls_token="middle",  # "tail": STAR
    global_pool="avg",  # "token": the class token
    drop_path_rate=0.1,
    init_cfg=dict(type="Pretrained", checkpoint="checkpoints/arm_b_pretrain.pth"),
    data_preprocessor=dict(
        type="MixupPreprocessor",
        mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=1000),
    ),
)
