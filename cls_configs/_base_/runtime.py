default_scope = "mmengine"
custom_imports = dict(
    imports=[
        "arm_backbone",
        "arm_toolkit.openmmlab",
        "arm_toolkit.datasets.class_folder",
        "arm_toolkit.evaluation.accuracy",
        "arm_toolkit.models.mixup",
    ],
    allow_failed_imports=False,
)

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3, save_best="accuracy/top1"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=True)
log_level = "INFO"

env_cfg = dict(
    cudnn_benchmark=True,  # all images have the same size
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
randomness = dict(seed=0)
load_from = None
resume = False
