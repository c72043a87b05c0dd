# MAE with ARM-B and one causal scan, 1600 epochs.
#   tools/dist_train.sh pretrain/configs/mae/mae_arm_b_1600e.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/mae_imagenet_1600e.py"]
