# 100 epochs of AdamW, lr 5e-4 x 1024 / 256, layer decay, a moving average of the weights (ARM section 4.2). Betas,
# minimum learning rate and which parameters decay follow the reference code.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=100, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# bfloat16 autocast; without a GPU tools/train.py trains in float32 (OptimWrapper).
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="bfloat16",
    loss_scale=1.0,  # bfloat16 has the range of float32
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="ARMOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay=0.65, decay_exempt="reference"),  # A_log decays, as in the reference code
)
param_scheduler = dict(
    type="WarmupCosineLR",
    warmup=5,
    floor=5e-4,  # as a fraction of the peak: 1e-6 / 2e-3; layer decay scales it too (reference code)
    convert_to_iter_based=True,
)
custom_hooks = [dict(type="WeightEMAHook", decay=0.99992)]
# --auto-scale-lr: lr x (GPUs x images per GPU) / 1024
auto_scale_lr = dict(enable=False, base_batch_size=1024)
