# ARM-L, 297 M parameters, 1600 epochs, batch 1024. Paper: 84.5 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/arm_l.py 8     # batch 1024 = 8 GPUs x 128 images
_base_ = ["./_base_/arm_imagenet_1600e.py"]

model = dict(arch="large")
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=6e-4))  # 1.5e-4 x 1024 / 256
auto_scale_lr = dict(base_batch_size=1024)
