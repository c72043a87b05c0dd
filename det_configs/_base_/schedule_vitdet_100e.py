# ViTDet's 100 epochs: 250 iterations of linear warm-up, tenfold drops at 0.889 and 0.963 of the training, here after
# epochs 89 and 96. 117,266 COCO images with objects / batch 64 = 1,833 iterations per epoch, 183,300 in total (ViTDet:
# 184,375).
_base_ = "schedule_36e.py"
train_cfg = dict(max_epochs=100, val_interval=5)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.1),
    paramwise_cfg=dict(layer_decay=0.7),  # L 0.8, H 0.9
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=100, milestones=[89, 96], gamma=0.1),
]
# --auto-scale-lr: lr x (GPUs x images per GPU) / 64
auto_scale_lr = dict(base_batch_size=64)
