# ARM's autoregressive pretraining (section 4.1): 192 x 192 pixels, clusters of 64 x 64 pixels, 1600 epochs of
# ImageNet-1K.
_base_ = ["./runtime.py"]

model = dict(
    type="ARMPretrainer",
    arch="base",
    img_size=192,
    cluster_side=4,  # in patches: 4 x 16 = 64 pixels, 9 clusters
    decoder_dim=512,
    decoder_depth=4,
    data_preprocessor=dict(
        type="ImgDataPreprocessor",
        mean=[123.675, 116.28, 103.53],  # ImageNet's, in 0..255, RGB
        std=[58.395, 57.12, 57.375],
    ),
)

train_dataloader = dict(
    batch_size=256,  # per GPU; 8 GPUs: 2048
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="ImageCrops",
        path="data/imagenet/train",
        size=192,
        scale=(0.2, 1.0),  # reference code
        on_error="raise",  # "skip" reads the next image in place of an unreadable one, and lists these at the end
        max_skipped=100,  # with "skip": more unreadable files stop the run
    ),
)

train_cfg = dict(type="ResumableEpochLoop", max_epochs=1600)
# lr 1.5e-4 x 2048 / 256; betas, clipping and bfloat16 as in the reference code (float32 without a GPU).
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="bfloat16",
    optimizer=dict(type="AdamW", lr=1.2e-3, betas=(0.9, 0.95), weight_decay=0.05),
    constructor="ARMOptimWrapperConstructor",
    paramwise_cfg=dict(decay_exempt="reference"),  # as in the reference code, which decays A_log
    clip_grad=dict(max_norm=3.0),
)
# The paper says 5 warm-up epochs; the reference code, its README and STAR say 40. Updated every iteration, down to 0.
param_scheduler = dict(type="WarmupCosineLR", warmup=40, convert_to_iter_based=True)
auto_scale_lr = dict(enable=False, base_batch_size=2048)  # --auto-scale-lr: lr x (GPUs x images per GPU) / 2048
