# MoCo v3 on ARM's encoder with all its scans: two views of 224 x 224 pixels, 300 epochs of ImageNet-1K. The recipe is
# that of MoCo v3 for ViT-B: lr 1.5e-4 x batch / 256, 40 warm-up epochs, weight decay of all parameters, no clipping.
_base_ = ["../../_base_/arm_imagenet_1600e.py"]

model = dict(
    _delete_=True,
    type="MoCoPretrainer",
    arch="base",
    img_size=224,
    hidden_dim=4096,
    out_dim=256,
    temperature=0.2,
    momentum=0.99,  # MomentumHook: up to 1, by half a cosine
    data_preprocessor=dict(
        type="ViewsPreprocessor",
        mean=[123.675, 116.28, 103.53],  # ImageNet's, in 0..255, RGB
        std=[58.395, 57.12, 57.375],
    ),
)
train_dataloader = dict(
    batch_size=512,  # per GPU; 8 GPUs: 4096
    dataset=dict(type="ImageViews", size=224, scale=(0.08, 1.0)),
)
train_cfg = dict(max_epochs=300)
optim_wrapper = dict(
    _delete_=True,
    type="AmpOptimWrapper",
    dtype="bfloat16",
    optimizer=dict(type="AdamW", lr=2.4e-3, weight_decay=0.1),  # 1.5e-4 x 4096 / 256
)
auto_scale_lr = dict(base_batch_size=4096)
custom_hooks = [dict(type="FiniteHook"), dict(type="MomentumHook")]
