# STAR's study: a separator of zeros (its paper: 82.35 top-1 after finetuning, 200 epochs).
#   tools/dist_train.sh pretrain/configs/star/value_zeros.py 8          8 GPUs x 256 images = 2048
_base_ = ["./_base_/star_b_200e.py"]

model = dict(separator=dict(value="zeros"))
