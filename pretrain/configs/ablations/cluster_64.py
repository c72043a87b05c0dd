# Ablation: clusters of 64 x 64 pixels, the default. Paper: 82.5 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/ablations/cluster_64.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(cluster_side=4)
