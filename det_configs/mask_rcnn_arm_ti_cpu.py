# Mask R-CNN for a small machine, with or without a GPU: ARM-Ti with narrow heads on 320-pixel images. It checks that
# data, training and evaluation work; its AP is not comparable with that of the other configurations.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_arm_ti_cpu.py 1 --cfg-options data_root=SMALL_COCO/
#
# Batch 4 = 1 process x 4 images; 12 epochs ("1x": drops after 8 and 11).
# Meant for a few hundred images in COCO's layout with COCO's 80 classes. For other classes let
# tools/new_config.py write a configuration, or set metainfo in the three data sets, and num_classes in both heads.
# From scratch: --cfg-options model.backbone.init_cfg=None
_base_ = [
    "_base_/mask_rcnn_arm_narrow.py",
    "_base_/coco_instance.py",
    "_base_/schedule_36e.py",
    "_base_/runtime.py",
]

train_pipeline = [
    dict(type="SeedSample"),
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomChoiceResize", scales=[(320, 192), (320, 256), (320, 320)], keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type="Resize", scale=(320, 320), keep_ratio=True)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]["transforms"][0] = [
    dict(type="Resize", scale=(edge, edge), keep_ratio=True) for edge in (256, 320, 384)
]
train_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=12, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=50),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=4))
