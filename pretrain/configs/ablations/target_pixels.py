# Ablation: pixels without normalization as the target. Paper: 81.9 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/ablations/target_pixels.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(target="pixels")
