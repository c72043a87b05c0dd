# ADE20K, 150 classes: 512 x 512 crops of images scaled to a short edge of 512 times 0.5 to 2.0
# (mmseg's practice).
data_root = "data/ade/ADEChallengeData2016/"

train_pipeline = [
    dict(type="SeedSample"),  # augmentation by seed, epoch and index: a resumed run is the same
    dict(type="LoadImage"),
    # stored 0 becomes 255 (ignored), stored k becomes k - 1: the data set's reduce_zero_label
    dict(type="LoadLabels", num_classes=150),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    # after Resize: the prediction is scaled back and judged at the original size
    dict(type="LoadLabels", num_classes=150),
    dict(type="PackSegInputs"),
]
# test-time augmentation (--tta): six sizes, each with and without a flip. The ratios are of the
# test size 2048 x 512, as they were in mmseg 0.x; mmseg 1.x's own file takes them of whatever size
# the photograph has.
tta_pipeline = [
    dict(type="LoadImage"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=(int(2048 * ratio), int(512 * ratio)), keep_ratio=True)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadLabels", num_classes=150)],
            [dict(type="PackSegInputs")],
        ],
    ),
]
tta_model = dict(type="SegTTAModel")

train_dataloader = dict(
    batch_size=2,  # on each GPU
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
# One image at a time: sizes differ, and a result then does not depend on which images share a
# batch.
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
