# Ablation: column by column, from bottom to top. Paper: 82.4 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/ablations/order_column_backward.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(order="column_backward")
