# Vim-Ti on ImageNet-1K, 300 epochs from scratch. Vim's authors: 76.1 top-1. See vim_s_in1k.py; the learning rate is
# 5e-4 per 512 images.
#
#   bash tools/dist_train.sh cls_configs/vim_ti_in1k.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = "vim_s_in1k.py"
model = dict(arch="tiny", drop_path_rate=0.0)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.1))
