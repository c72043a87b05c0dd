# Ablation: column by column, from top to bottom. Paper: 82.5 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/ablations/order_column_forward.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(order="column_forward")
