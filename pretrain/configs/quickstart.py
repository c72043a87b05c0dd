# AR pretraining on the generated shapes, for tools/quickstart.sh. Two to three minutes on two CPU cores.
#   python tools/pretrain.py pretrain/configs/quickstart.py
_base_ = ["./_base_/arm_imagenet_1600e.py"]

model = dict(
    arch=dict(_delete_=True, embed_dims=128, num_layers=6),
    cluster_side=2,  # 32 pixels: an object of the data set covers several clusters
    decoder_dim=64,
    decoder_depth=2,
)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(path="work_dirs/quickstart/shapes/coco/train2017", scale=(0.5, 1.0)),
)
train_cfg = dict(max_epochs=20)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
param_scheduler = dict(warmup=2)
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=10, max_keep_ckpts=1))
