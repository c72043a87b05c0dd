# ARM-H on ImageNet-1K from AR pretraining, 224 x 224, 100 epochs (paper: 85.0 top-1).
#
#   bash tools/dist_train.sh cls_configs/arm_h_in1k.py 8
#
# Batch 128 = 8 GPUs x 16 images, eight of them a step: 1024. The paper names neither layer decay nor drop path of H:
# both are ARM-L's, as MAE has one value for ViT-L and ViT-H.
_base_ = "arm_l_in1k.py"
model = dict(
    arch="huge",
    with_cp="selective",
    init_cfg=dict(checkpoint="checkpoints/arm_h_pretrain.pth"),
)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(accumulative_counts=8)
auto_scale_lr = dict(base_batch_size=128)
