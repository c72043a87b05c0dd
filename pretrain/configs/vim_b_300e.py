# Autoregressive pretraining of Vim-B with one causal scan, 300 epochs. Paper, Table 9: 82.2 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/vim_b_300e.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_imagenet_1600e.py"]

model = dict(encoder="Vim")
train_cfg = dict(max_epochs=300)
