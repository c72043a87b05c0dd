# What ARM's ablations have in common: ARM-B, 300 epochs (ARM section 4.3), then finetuned as cls_configs/arm_b_in1k.py.
_base_ = ["../../_base_/arm_imagenet_1600e.py"]

train_cfg = dict(max_epochs=300)
