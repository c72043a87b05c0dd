# STAR's study: one separator token, 4 images (its paper: 79.37 top-1 after finetuning, 200 epochs). The studies of type, position and number use the zeros separator.
#   tools/dist_train.sh pretrain/configs/star/type_token.py 8          8 GPUs x 256 images = 2048
_base_ = ["./_base_/star_b_200e.py"]

model = dict(separator=dict(type="token", value="zeros"), images_per_sequence=4)
