# Vim-S on ImageNet-1K, 300 epochs from scratch. Vim's authors: 80.5 top-1. Learning rate (1e-3 per 512 images), weight
# decay, warm-up, drop path, float32 and the test's crop are as they published them; augmentation, floor of the learning
# rate and moving average are ours, as for MambaMLP.
#
#   bash tools/dist_train.sh cls_configs/vim_s_in1k.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = ["_base_/vim.py", "_base_/imagenet.py", "_base_/schedule_100e.py", "_base_/runtime.py"]
model = dict(arch="small", drop_path_rate=0.05)
val_dataloader = dict(dataset=dict(transform=dict(crop_mode="center")))  # the shorter side to 256, crop the centre
test_dataloader = dict(dataset=dict(transform=dict(crop_mode="center")))
train_cfg = dict(max_epochs=300)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="ARMOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay=1.0, decay_exempt="reference"),  # A_log decays, D and the biases do not
)
