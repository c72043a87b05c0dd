# ARM-B, 85 M parameters, pretrained for 1600 epochs (paper: 83.2 top-1 after finetuning).
#   tools/dist_train.sh pretrain/configs/arm_b.py 8          8 GPUs x 256 images = 2048
_base_ = ["./_base_/arm_imagenet_1600e.py"]
