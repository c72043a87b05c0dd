# ARM-L on ImageNet-1K from AR pretraining, 224 x 224, 100 epochs. Paper: 84.5 top-1.
#
#   bash tools/dist_train.sh cls_configs/arm_l_in1k.py 8
#
# Batch 256 = 8 GPUs x 32 images; 4 batches are accumulated per step: 1024. (The authors' launch command.)
_base_ = "arm_b_in1k.py"
model = dict(
    arch="large",
    drop_path_rate=0.3,
    init_cfg=dict(checkpoint="checkpoints/arm_l_pretrain.pth"),
)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(
    accumulative_counts=4,
    paramwise_cfg=dict(layer_decay=0.75),
)
auto_scale_lr = dict(base_batch_size=256)
