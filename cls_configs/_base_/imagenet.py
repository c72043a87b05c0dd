# ImageNet-1K in its folder layout, train/WNID/NAME.JPEG and val/WNID/NAME.JPEG, with the augmentation of ARM section
# 4.2 by timm. Any tree with one folder per class works: set data_root, model.num_classes and
# model.data_preprocessor.mixup.num_classes.
data_root = "data/imagenet/"

train_dataloader = dict(
    batch_size=128,  # per GPU; 8 GPUs: 1024
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ClassFolder",
        data_root=data_root,
        split="train",
        on_error="raise",  # "skip" reads the next image in place of an unreadable one, and lists these at the end
        max_skipped=100,  # with "skip": more unreadable files stop the run
        transform=dict(
            is_training=True,
            input_size=224,
            auto_augment="rand-m9-mstd0.5-inc1",
            interpolation="bicubic",
            re_prob=0.25,  # random erasing
            re_mode="pixel",
        ),
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ClassFolder",
        data_root=data_root,
        split="val",
        transform=dict(
            is_training=False,
            input_size=224,
            interpolation="bicubic",
            crop_pct=0.875,
            crop_mode="squash",  # reference code: resize to 256 x 256, crop the centre; "center" keeps the aspect ratio
        ),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy")
test_evaluator = val_evaluator
