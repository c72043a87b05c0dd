# VMamba-B on ImageNet-1K, 224 x 224, 300 epochs from scratch. VMamba's authors: 83.9 top-1. Learning rate (5e-4 per 512
# images), warm-up, weight decay and what it spares, clipping, drop path, mixup, moving average and the test's crop are as
# they published them; the other augmentation is ARM's, and so is the share of the learning rate that remains at the end.
#
#   bash tools/dist_train.sh cls_configs/vmamba_b_in1k.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = ["_base_/imagenet.py", "_base_/schedule_100e.py", "_base_/runtime.py"]
model = dict(
    type="VMambaClassifier",
    arch="base",
    num_classes=1000,
    drop_path_rate=0.6,
    data_preprocessor=dict(
        type="MixupPreprocessor",
        mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=1000),
    ),
)
val_dataloader = dict(dataset=dict(transform=dict(crop_mode="center")))  # the shorter side to 256, crop the centre
test_dataloader = dict(dataset=dict(transform=dict(crop_mode="center")))
train_cfg = dict(max_epochs=300)
optim_wrapper = dict(
    clip_grad=dict(max_norm=5.0),
    optimizer=dict(lr=1e-3),
    # no weight decay for vectors and layers' biases; A_log and the delta biases decay
    paramwise_cfg=dict(layer_decay=1.0, decay_exempt="timm"),
)
param_scheduler = dict(warmup=20)
custom_hooks = [dict(type="WeightEMAHook", decay=0.9999)]
