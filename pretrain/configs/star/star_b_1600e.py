# STAR-B, 1600 epochs. Its paper: 83.5 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/star/star_b_1600e.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/star_b_200e.py"]

train_cfg = dict(max_epochs=1600)
