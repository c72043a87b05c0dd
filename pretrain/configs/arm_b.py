# ARM-B, 85 M parameters, 1600 epochs. Paper: 83.2 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/arm_b.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_imagenet_1600e.py"]
