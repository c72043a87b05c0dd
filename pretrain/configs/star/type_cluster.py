# STAR's study: a separator cluster, 4 images (its paper: 82.40 top-1 after finetuning, 200 epochs). The studies of type, position and number use the zeros separator.
#   tools/dist_train.sh pretrain/configs/star/type_cluster.py 8          8 GPUs x 256 images = 2048
_base_ = ["./_base_/star_b_200e.py"]

model = dict(separator=dict(value="zeros"), images_per_sequence=4)
