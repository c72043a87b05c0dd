# UperNet on 20 of the generated shapes, for tools/quickstart.sh: a small ARM and narrow heads. Two minutes on one CPU
# core.
#   python tools/train.py seg_configs/quickstart_upernet.py
_base_ = ["_base_/upernet_arm.py", "_base_/ade20k.py", "_base_/schedule_160k.py", "_base_/runtime.py"]

data_root = "work_dirs/quickstart/shapes/ade/"
metainfo = dict(
    classes=("background", "disc", "square", "triangle"),
    palette=[[90, 90, 90], [230, 60, 60], [60, 190, 75], [70, 110, 240]],
)

# With ReLU, all but 5 of the 64 channels before the classifier could be 0 on a class, which then learned nothing: an IoU
# of 0.0 in one of four seeds. GELU keeps a gradient.
act_cfg = dict(type="GELU")
model = dict(
    data_preprocessor=dict(size=(192, 192)),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=6),
        img_size=192,
        drop_path_rate=0.0,  # too few iterations to need it
        init_cfg=dict(checkpoint="work_dirs/quickstart/backbone.pth"),
    ),
    neck=dict(in_channels=128, norm_cfg=dict(type="BN")),
    decode_head=dict(in_channels=[128] * 4, channels=64, num_classes=4, norm_cfg=dict(type="BN"), act_cfg=act_cfg),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=4, norm_cfg=dict(type="BN"), act_cfg=act_cfg),
    test_cfg=dict(_delete_=True, mode="whole"),
)

train_pipeline = [
    dict(type="SeedSample"),
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(192, 192), ratio_range=(0.9, 1.3), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(192, 192)),
    dict(type="RandomFlip", prob=[0.3, 0.3], direction=["horizontal", "vertical"]),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
dataset = dict(type="BaseSegDataset", data_root=data_root, metainfo=metainfo, reduce_zero_label=True)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(indices=20, pipeline=train_pipeline, **dataset),  # few labels: only the first 20 images
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
del dataset, metainfo
del act_cfg
tta_model = tta_pipeline = None

train_cfg = dict(max_iters=240, val_begin=241)  # never: tools/test.py evaluates
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=False, begin=20, end=240),
]
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=240, save_best=None))
