# STAR, value: a learned separator, 8 images, 200 epochs. Its paper: 82.27 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/star/value_embedding.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/star_b_200e.py"]

model = dict(separator=dict(value="embedding"))
