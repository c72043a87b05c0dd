# COCO 2017 instances with large-scale jittering, as in ViTDet: images are resized to 0.1 to 2 times 1024 pixels, then
# cropped or padded to 1024 x 1024.
_base_ = "coco_instance.py"

train_pipeline = [
    dict(type="SeedSample"),  # augmentation depends on seed, epoch and index only, so resuming repeats it
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomResize", scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type="RandomCrop",
        crop_type="absolute",
        crop_size=(1024, 1024),
        recompute_bbox=True,  # a box cut by the crop fits what is left of the mask
        allow_negative_crop=True,
    ),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2), keep_empty=False),  # a crop without objects stays
    dict(type="PackDetInputs"),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type="Resize", scale=(1024, 1024), keep_ratio=True)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]["transforms"][0] = [
    dict(type="Resize", scale=(edge, edge), keep_ratio=True)
    for edge in (768, 896, 1024)  # no larger: padded to 1024 x 1024
]
train_dataloader = dict(
    batch_size=8,  # per GPU
    batch_sampler=None,  # all images have one size
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
