# ARM-H on ImageNet-1K from AR pretraining, 224 x 224, 100 epochs. Paper: 85.0 top-1. The paper gives neither layer
# decay nor drop path for H; both are ARM-L's, as MAE uses one value for ViT-L and ViT-H.
#
#   bash tools/dist_train.sh cls_configs/arm_h_in1k.py 8
#
# Batch 128 = 8 GPUs x 16 images; 8 batches are accumulated per step: 1024.
_base_ = "arm_l_in1k.py"
model = dict(
    arch="huge",
    with_cp="selective",
    init_cfg=dict(checkpoint="checkpoints/arm_h_pretrain.pth"),
)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(accumulative_counts=8)
auto_scale_lr = dict(base_batch_size=128)
