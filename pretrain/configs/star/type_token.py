# STAR, type: a separator of one token (zeros), 4 images, 200 epochs. Its paper: 79.37 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/star/type_token.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/star_b_200e.py"]

model = dict(separator=dict(type="token", value="zeros"), images_per_sequence=4)
