# Ablation: decoder width 384. Paper: 82.3 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/ablations/decoder_width_384.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(decoder_dim=384)
