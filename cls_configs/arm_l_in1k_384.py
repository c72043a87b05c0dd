# ARM-L on ImageNet-1K at 384 x 384. Paper: 85.1 top-1. The paper does not state the initial weights or the schedule;
# we start from AR pretraining and use the recipe for 224 x 224.
#
#   bash tools/dist_train.sh cls_configs/arm_l_in1k_384.py 8
#
# Batch 256 = 8 GPUs x 32 images; 4 batches are accumulated per step: 1024.
_base_ = "arm_l_in1k.py"
model = dict(img_size=384)
train_dataloader = dict(dataset=dict(transform=dict(input_size=384)))
val_dataloader = dict(dataset=dict(transform=dict(input_size=384, crop_pct=1.0)))  # reference code, above 224 pixels
test_dataloader = val_dataloader
