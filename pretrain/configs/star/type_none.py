# STAR's study: no separator between 4 images (its paper: 78.63 top-1 after finetuning, 200 epochs). The studies of type, position and number use the zeros separator.
#   tools/dist_train.sh pretrain/configs/star/type_none.py 8          8 GPUs x 256 images = 2048
_base_ = ["./_base_/star_b_200e.py"]

model = dict(separator=dict(type="none", value="zeros"), images_per_sequence=4)
