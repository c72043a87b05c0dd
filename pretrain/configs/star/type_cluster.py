# STAR, type: a separator of one cluster (zeros), 4 images, 200 epochs. Its paper: 82.40 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/star/type_cluster.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/star_b_200e.py"]

model = dict(separator=dict(value="zeros"), images_per_sequence=4)
