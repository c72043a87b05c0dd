# Your own images with objects: the data, schedule and run of the configurations that tools/new_config.py writes. They
# set sizes, batch, length and rates, which depend on the images and the machine.
_base_ = ["coco_instance.py", "runtime.py"]

train_pipeline = [
    dict(type="SeedSample"),  # augmentation depends on seed, epoch and index only, so resuming repeats it
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomChoiceResize", scales=[(1333, 640), (1333, 800)], keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),  # with few images, colours are learned by heart
    dict(type="PackDetInputs"),
]
train_dataloader = dict(
    num_workers=2,
    sampler=dict(infinite=True),  # a small data set has epochs of a few iterations, so iterations count
    batch_sampler=None,  # groups by aspect ratio would be read again, all of them, when a run is resumed
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=2)
val_evaluator = dict(ann_file=None)  # that of the data set
test_dataloader = val_dataloader
test_evaluator = val_evaluator

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
    logger=dict(interval=10, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=1, save_best="coco/bbox_mAP", rule="greater"),
)
log_processor = dict(by_epoch=False, window_size=10)
