# Linear probe of AR-pretrained ARM-B: a frozen encoder with the single causal scan of pretraining, then BatchNorm
# without parameters and a linear head (MAE's protocol, with SGD instead of LARS). Not in the paper.
#
#   bash tools/dist_train.sh cls_configs/arm_b_linear.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = "arm_b_in1k.py"
model = dict(
    type="LinearProbe",
    scans=1,
    cls_token=None,
    drop_path_rate=0.0,
    data_preprocessor=dict(_delete_=True, type="BaseDataPreprocessor"),
)
train_dataloader = dict(
    dataset=dict(
        transform=dict(_delete_=True, is_training=True, input_size=224, interpolation="bicubic", color_jitter=0)
    )
)
train_cfg = dict(max_epochs=90)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", lr=0.4, momentum=0.9, weight_decay=0.0),  # lr 0.1 x 1024 / 256
    paramwise_cfg=dict(layer_decay=1.0),
)
param_scheduler = dict(warmup=10, floor=0.0)
custom_hooks = []
