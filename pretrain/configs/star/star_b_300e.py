# STAR-B, 300 epochs (its paper: 82.9 top-1 after finetuning).
#   tools/dist_train.sh pretrain/configs/star/star_b_300e.py 8          8 GPUs x 256 images = 2048
_base_ = ["./_base_/star_b_200e.py"]

train_cfg = dict(max_epochs=300)
