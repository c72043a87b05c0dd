# STAR-B, 200 epochs (its paper: not stated with this value top-1 after finetuning).
#   tools/dist_train.sh pretrain/configs/star/star_b_200e.py 8          8 GPUs x 256 images = 2048
_base_ = ["./_base_/star_b_200e.py"]
