# MAE with ARM-B and four scans, of which each reads its order restricted to the kept patches, 300 epochs.
#   tools/dist_train.sh pretrain/configs/mae/mae_arm_b_300e_four_scans.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/mae_imagenet_1600e.py"]

model = dict(scans=4)
train_cfg = dict(max_epochs=300)
