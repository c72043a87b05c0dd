# STAR, type: no separator, 4 images, 200 epochs. Its paper: 78.63 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/star/type_none.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/star_b_200e.py"]

model = dict(separator=dict(type="none", value="zeros"), images_per_sequence=4)
