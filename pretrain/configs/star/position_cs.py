# STAR, position: one zeros separator after each image, 200 epochs. Its paper: 77.94 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/star/position_cs.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/star_b_200e.py"]

model = dict(separator=dict(value="zeros", position="CS"))
