# A small ARM on class folders cut from the generated shapes, starting from the quickstart's pretraining: two minutes on
# two CPU cores. Copy this file for your own folders. From scratch: --cfg-options model.init_cfg=None
#   python tools/prepare_data.py classes work_dirs/quickstart/shapes/coco work_dirs/quickstart/classes
#   python tools/train.py cls_configs/quickstart_arm.py
_base_ = ["_base_/arm.py", "_base_/imagenet.py", "_base_/schedule_100e.py", "_base_/runtime.py"]
data_root = "work_dirs/quickstart/classes/"
model = dict(
    arch=dict(_delete_=True, embed_dims=128, num_layers=6),
    img_size=96,
    num_classes=3,
    drop_path_rate=0.0,
    init_cfg=dict(checkpoint="work_dirs/quickstart/backbone.pth"),
    data_preprocessor=dict(mixup=dict(prob=0.0, num_classes=3)),  # label smoothing alone
)
light = dict(scale=(0.5, 1.0), re_prob=0.0, auto_augment=None)  # light augmentation for a short run on few images
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(data_root=data_root, transform=dict(input_size=96, **light)),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(data_root=data_root, transform=dict(input_size=96, crop_pct=1.0)),
)
test_dataloader = val_dataloader
del light
train_cfg = dict(max_epochs=6)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(layer_decay=1.0))
param_scheduler = dict(warmup=1)
custom_hooks = [dict(type="WeightEMAHook", decay=0.98)]
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=1, max_keep_ckpts=1))
