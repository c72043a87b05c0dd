# ARM-B on ImageNet-1K at 448 x 448, with a patch of 16 x 16 pixels every 8 pixels: 55 x 55 tokens. Paper: 85.2 top-1
# (84.8 in its first version). Initial weights and schedule as in arm_b_in1k_384.py.
#
#   bash tools/dist_train.sh cls_configs/arm_b_in1k_448_stride8.py 8
#
# Batch 256 = 8 GPUs x 32 images; 4 batches are accumulated per step: 1024.
_base_ = "arm_b_in1k.py"
model = dict(img_size=448, patch_stride=8, with_cp="selective")
train_dataloader = dict(batch_size=32, dataset=dict(transform=dict(input_size=448)))
val_dataloader = dict(dataset=dict(transform=dict(input_size=448, crop_pct=1.0)))
test_dataloader = val_dataloader
optim_wrapper = dict(accumulative_counts=4)
auto_scale_lr = dict(base_batch_size=256)
