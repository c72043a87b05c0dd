# MoCo v3 with ARM-B, four scans and a class token in the middle. Paper, Table 9: 81.4 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/moco/moco_arm_b_300e.py 8     # batch 4096 = 8 GPUs x 512 images
_base_ = ["./_base_/moco_imagenet_300e.py"]
