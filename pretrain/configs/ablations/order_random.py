# Ablation: a new random order of the clusters in every step. Paper: 81.5 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/ablations/order_random.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(order="random")
