# STAR's study: a separator after every three clusters (its paper: 78.64 top-1 after finetuning, 200 epochs). The studies of type, position and number use the zeros separator.
#   tools/dist_train.sh pretrain/configs/star/position_csc.py 8          8 GPUs x 256 images = 2048
_base_ = ["./_base_/star_b_200e.py"]

model = dict(separator=dict(value="zeros", position="CSC"))
