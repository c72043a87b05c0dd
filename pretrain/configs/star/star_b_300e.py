# STAR-B, 300 epochs. Its paper: 82.9 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/star/star_b_300e.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/star_b_200e.py"]

train_cfg = dict(max_epochs=300)
