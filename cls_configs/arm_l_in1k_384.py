# ARM-L on ImageNet-1K at 384 x 384 (paper: 85.1 top-1). The paper does not say from which weights and for how long:
# here from AR pretraining with the recipe of 224 x 224.
#
#   bash tools/dist_train.sh cls_configs/arm_l_in1k_384.py 8
#
# Batch 256 = 8 GPUs x 32 images.
_base_ = "arm_l_in1k.py"
model = dict(img_size=384)
train_dataloader = dict(dataset=dict(transform=dict(input_size=384)))
val_dataloader = dict(dataset=dict(transform=dict(input_size=384, crop_pct=1.0)))  # reference code above 224
test_dataloader = val_dataloader
