# Ablation: columns from the top (paper: 82.5 top-1 after finetuning).
#   tools/dist_train.sh pretrain/configs/ablations/order_column_forward.py 8          8 GPUs x 256 images = 2048
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(order="column_forward")
