# Ablation: decoder width 1024. Paper: 82.2 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/ablations/decoder_width_1024.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(decoder_dim=1024)
