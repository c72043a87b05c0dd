# Ablation: row by row, from right to left. Paper: 82.3 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/ablations/order_row_backward.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(order="row_backward")
