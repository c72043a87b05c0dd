# Ablation: clusters of 48 x 48 pixels. Paper: 82.2 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/ablations/cluster_48.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(cluster_side=3)
