# Mask R-CNN on 20 of the generated shapes, for tools/quickstart.sh: a small ARM and narrow heads. Two minutes on one CPU
# core.
#   python tools/train.py det_configs/quickstart_mask_rcnn.py
_base_ = ["_base_/mask_rcnn_arm.py", "_base_/coco_instance.py", "_base_/schedule_36e.py", "_base_/runtime.py"]

data_root = "work_dirs/quickstart/shapes/coco/"
classes = ("disc", "square", "triangle")

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=6),
        img_size=192,
        drop_path_rate=0.0,  # too few iterations to need it
        init_cfg=dict(checkpoint="work_dirs/quickstart/backbone.pth"),
    ),
    neck=[
        dict(type="ARMPyramid", in_channels=128, norm_cfg=dict(type="GN")),
        dict(type="FPN", in_channels=[128] * 4, out_channels=64, num_outs=5),
    ],
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        # 2 x 2 samples per bin; the adaptive number (sampling_ratio=0) took a quarter of the time
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=3),
        mask_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2, num_classes=3),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100), rcnn=dict(max_per_img=20)),
)

train_pipeline = [
    dict(type="SeedSample"),
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=(192, 192), ratio_range=(0.9, 1.3), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(192, 192)),
    dict(type="RandomFlip", prob=[0.3, 0.3], direction=["horizontal", "vertical"]),
    dict(type="PackDetInputs"),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type="Resize", scale=(192, 192), keep_ratio=True)
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(indices=20, pipeline=train_pipeline, **dataset),  # few labels: only the first 20 images
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator
del dataset, classes
tta_model = tta_pipeline = None

train_cfg = dict(max_epochs=48, val_begin=49)  # never: tools/test.py evaluates
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, begin=0, end=48, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=48, save_best=None))
