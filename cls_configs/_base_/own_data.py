# Your own class folders: the data, schedule and run of the configurations that tools/new_config.py writes. They set
# sizes, batch, length and rates, which depend on the images and the machine.
_base_ = ["imagenet.py", "runtime.py"]

train_dataloader = dict(
    num_workers=2,
    sampler=dict(infinite=True),  # a small data set has epochs of a few iterations, so iterations count
    dataset=dict(transform=dict(scale=(0.3, 1.0), auto_augment="rand-m7-mstd0.5-inc1", re_prob=0.1)),
)
val_dataloader = dict(num_workers=2)
test_dataloader = val_dataloader

train_cfg = dict(type="IterBasedTrainLoop", max_iters=1000, val_interval=100)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="AutoAmpOptimWrapper",  # bfloat16 where it is faster
    optimizer=dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
    constructor="ARMOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay=0.75),
)
param_scheduler = dict(type="WarmupCosineLR", warmup=50, floor=0.01, by_epoch=False)  # ends with the training
auto_scale_lr = dict(enable=False, base_batch_size=256)
default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=1, save_best="accuracy/top1", rule="greater"),
)
log_processor = dict(by_epoch=False, window_size=10)
