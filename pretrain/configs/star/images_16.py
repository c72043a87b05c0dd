# STAR, number of images: 16 per sequence, zeros separator, 200 epochs. Its paper: 81.97 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/star/images_16.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/star_b_200e.py"]

model = dict(separator=dict(value="zeros"), images_per_sequence=16)
