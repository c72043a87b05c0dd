# 36 epochs ("3x"): 1,000 iterations of linear warm-up, tenfold drops after epochs 27 and 33 (Swin;
# ARM section 4). 117,266 COCO images with objects / batch 16 = 7,330 iterations an epoch, 263,880
# in all.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=36, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# bfloat16 autocast; tools/train.py trains in float32 (OptimWrapper) where there is no GPU.
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="bfloat16",
    loss_scale=1.0,  # bfloat16 has the range of float32
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # no decay of norms, biases, pos_embed, class token, A_log and D, by name; the rate falls by
    # layer_decay a block
    constructor="ARMOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay=1.0),  # none: the paper names none
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
# --auto-scale-lr: lr x (GPUs x images a GPU) / 16
auto_scale_lr = dict(enable=False, base_batch_size=16)
