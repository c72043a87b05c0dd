# 36 epochs ("3x"): 1,000 iterations of linear warm-up, tenfold drops after epochs 27 and 33 (Swin; ARM section 4).
# 117,266 COCO images with objects / batch 16 = 7,330 iterations per epoch, 263,880 in total.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=36, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# bfloat16 autocast; without a GPU tools/train.py trains in float32 (OptimWrapper).
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="bfloat16",
    loss_scale=1.0,  # bfloat16 has the range of float32
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # no weight decay for norms, biases, pos_embed, class token, A_log and D, selected by name; the learning rate of
    # each block is layer_decay times that of the next
    constructor="ARMOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay=1.0),  # no layer decay: the paper mentions none
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
# --auto-scale-lr: lr x (GPUs x images per GPU) / 16
auto_scale_lr = dict(enable=False, base_batch_size=16)
