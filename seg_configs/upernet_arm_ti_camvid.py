# CamVid (11 classes, 480 x 360) with ARM-Ti and narrow heads: small enough for a CPU, and the example to copy for your
# own data. It checks that data, training and evaluation work; do not compare its mIoU with published ones.
#
#   bash tools/dist_train.sh seg_configs/upernet_arm_ti_camvid.py 1
#
# Batch 8 = 1 process x 8 crops of 192 x 192; 400 iterations (9 epochs of 367 images).
# From scratch: --cfg-options model.backbone.init_cfg=None
#
# For your own data tools/new_config.py writes such a file. By hand, change six places (numbered below):
#   1. data_root. It holds images/{training,validation}/NAME.jpg and annotations/{training,validation}/NAME.png (8-bit,
#      one channel). For other names set data_prefix, img_suffix and seg_map_suffix of the data sets.
#   2. The class names, in the order of their labels, and a colour for each.
#   3. reduce_zero_label: True if a stored 0 means "ignore" and class k is stored as k + 1, as here and in ADE20K; False
#      if class k is stored as k and 255 means "ignore".
#   4. The number of classes, in both heads.
#   5. The size of images and crops.
#   6. The length of training (in train_cfg and in param_scheduler) and the learning rate.
_base_ = [
    "_base_/upernet_arm_narrow.py",
    "_base_/ade20k.py",
    "_base_/schedule_160k.py",
    "_base_/runtime.py",
]
data_root = "data/camvid/"  # 1
metainfo = dict(  # 2
    classes=(
        "sky", "building", "pole", "road", "pavement", "tree",
        "sign symbol", "fence", "car", "pedestrian", "bicyclist",
    ),
    palette=[
        [128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0],
        [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192],
    ],
)  # fmt: skip
model = dict(
    data_preprocessor=dict(size=(192, 192)),  # 5: the training crop
    decode_head=dict(num_classes=11),  # 4
    auxiliary_head=dict(num_classes=11),  # 4
    test_cfg=dict(_delete_=True, mode="whole"),
)

train_pipeline = [
    dict(type="SeedSample"),
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(480, 360), ratio_range=(0.75, 2.0), keep_ratio=True),  # 5
    dict(type="RandomCrop", crop_size=(192, 192), cat_max_ratio=0.75),  # 5
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(480, 360), keep_ratio=True),  # 5
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=scale, keep_ratio=True)
                for scale in ((360, 270), (480, 360), (720, 540))  # 5
            ],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
dataset = dict(
    type="BaseSegDataset",
    data_root=data_root,
    metainfo=metainfo,
    reduce_zero_label=True,  # 3
)
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
del dataset, metainfo

# 6
train_cfg = dict(max_iters=400, val_interval=200)
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=40),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=40, end=400),
]
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=200))
