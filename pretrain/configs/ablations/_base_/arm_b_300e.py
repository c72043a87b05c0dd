# Shared by ARM's ablations: ARM-B, 300 epochs (ARM section 4.3), then finetuning as in cls_configs/arm_b_in1k.py.
_base_ = ["../../_base_/arm_imagenet_1600e.py"]

train_cfg = dict(max_epochs=300)
