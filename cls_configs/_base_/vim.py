# Vim, trained with labels only: the class token, in the middle of the sequence, after an RMSNorm and a linear head.
model = dict(
    type="VimClassifier",
    arch="base",
    img_size=224,
    num_classes=1000,
    scans=2,
    cls_token="middle",
    global_pool="token",
    drop_path_rate=0.1,
    data_preprocessor=dict(
        type="MixupPreprocessor",
        mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=1000),
    ),
)
