# Your own images with label maps: the data, schedule and run of the configurations that tools/new_config.py writes.
# They set sizes, batch, length and rates, which depend on the images and the machine.
_base_ = ["ade20k.py", "runtime.py"]

train_pipeline = [
    dict(type="SeedSample"),  # augmentation depends on seed, epoch and index only, so resuming repeats it
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(num_workers=2, dataset=dict(type="BaseSegDataset", pipeline=train_pipeline))
val_dataloader = dict(num_workers=2, dataset=dict(type="BaseSegDataset"))
test_dataloader = val_dataloader

train_cfg = dict(type="IterBasedTrainLoop", max_iters=1000, val_interval=100)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="AutoAmpOptimWrapper",  # bfloat16 where it is faster
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),  # single images of a small data set can have large gradients
    constructor="ARMOptimWrapperConstructor",
)
param_scheduler = dict(type="WarmupCosineLR", warmup=50, floor=0.01, by_epoch=False)  # ends with the training
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=100, max_keep_ckpts=1, save_best="mIoU", rule="greater"),
)
log_processor = dict(window_size=10)
