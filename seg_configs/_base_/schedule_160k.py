# 160,000 iterations: 1,500 of linear warm-up, then linear decay to zero (ARM section 4; mmseg's Swin and ViT). Batch 16
# over 20,210 ADE20K images: 127 epochs.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=16000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# bfloat16 autocast; without a GPU tools/train.py trains in float32 (OptimWrapper).
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="bfloat16",
    loss_scale=1.0,  # bfloat16 has the range of float32
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    # no weight decay for norms, biases, pos_embed, class token, A_log and D, selected by name; the learning rate of
    # each block is layer_decay times that of the next
    constructor="ARMOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay=1.0),  # no layer decay: the paper mentions none
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]
# --auto-scale-lr: lr x (GPUs x images per GPU) / 16
auto_scale_lr = dict(enable=False, base_batch_size=16)
