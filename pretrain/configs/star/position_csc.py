# STAR, position: a zeros separator after every three clusters, 200 epochs. Its paper: 78.64 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/star/position_csc.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/star_b_200e.py"]

model = dict(separator=dict(value="zeros", position="CSC"))
