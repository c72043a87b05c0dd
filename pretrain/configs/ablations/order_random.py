# Ablation: another order every step (paper: 81.5 top-1 after finetuning).
#   tools/dist_train.sh pretrain/configs/ablations/order_random.py 8          8 GPUs x 256 images = 2048
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(order="random")
