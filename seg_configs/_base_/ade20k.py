# ADE20K, 150 classes. In training the short edge is resized to 256 to 1024 pixels, then a crop of 512 x 512 is taken,
# as in mmseg.
data_root = "data/ade/ADEChallengeData2016/"

train_pipeline = [
    dict(type="SeedSample"),  # augmentation depends on seed, epoch and index only, so resuming repeats it
    dict(type="LoadImageFromFile"),
    # reduce_zero_label of the data set: a stored 0 becomes 255 (ignored), a stored k becomes k - 1
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    # after Resize: predictions are resized back and evaluated at the original size
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
# test-time augmentation (--tta): six sizes, each with and without a flip. The ratios multiply the test size 2048 x 512,
# as in mmseg 0.x; mmseg 1.x multiplies the size of each image.
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=(int(2048 * ratio), int(512 * ratio)), keep_ratio=True)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
tta_model = dict(type="SegTTAModel")

train_dataloader = dict(
    batch_size=2,  # per GPU
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="SeededSampler", shuffle=True, infinite=True),
    dataset=dict(
        type="ADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
# One image at a time, so that no result depends on the padding of a batch.
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
