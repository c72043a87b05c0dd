# MAE with Vim-B, one causal scan and a class token in the middle, 300 epochs. Paper, Table 9: 81.4 top-1 after finetuning.
#   tools/dist_train.sh pretrain/configs/mae/mae_vim_b_300e.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/mae_imagenet_1600e.py"]

model = dict(encoder="Vim", cls_token="middle")
train_cfg = dict(max_epochs=300)
