default_scope = "mmengine"
custom_imports = dict(imports=["arm_pretrain", "arm_toolkit.openmmlab"], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=10, max_keep_ckpts=3),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
custom_hooks = [
    dict(type="FiniteHook"),
    dict(type="ReconstructionHook", interval=10),  # path=FOLDER: draw images that are not trained on
]
# Writes scalars.json, vis_image/ and TensorBoard events to the work dir. Weights & Biases instead of TensorBoard (pip
# install wandb): --cfg-options visualizer.vis_backends.1.type=WandbVisBackend
visualizer = dict(
    type="Visualizer",
    name="visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
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
