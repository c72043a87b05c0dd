# STAR-B, 200 epochs: the same settings as value_identity.py. Its paper: 82.32 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/star/star_b_200e.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/star_b_200e.py"]
