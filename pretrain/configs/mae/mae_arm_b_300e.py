# MAE with ARM-B and one causal scan, 300 epochs. Paper, Table 9: 81.6 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/mae/mae_arm_b_300e.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/mae_imagenet_1600e.py"]

train_cfg = dict(max_epochs=300)
