# ARM-H, 662 M parameters, 800 epochs, batch 512. Paper: 85.0 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/arm_h.py 8     # batch 512 = 8 GPUs x 64 images
_base_ = ["./_base_/arm_imagenet_1600e.py"]

model = dict(arch="huge", with_cp="selective")
train_dataloader = dict(batch_size=64)
train_cfg = dict(max_epochs=800)
optim_wrapper = dict(optimizer=dict(lr=3e-4))  # 1.5e-4 x 512 / 256
auto_scale_lr = dict(base_batch_size=512)
model_wrapper_cfg = dict(type="fully_shard")  # shards weights, gradients and Adam's moments: 10.6 GB in all
