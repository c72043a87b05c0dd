# Vim-B on ImageNet-1K, 300 epochs from scratch. Paper: 81.2 top-1 (Vim's authors: 81.9). Nobody has published a recipe
# for this size. This one is MambaMLP-B's, with which ARM's paper compares it.
#
#   bash tools/dist_train.sh cls_configs/vim_b_in1k.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = ["_base_/vim.py", "_base_/imagenet.py", "_base_/schedule_100e.py", "_base_/runtime.py"]
train_cfg = dict(max_epochs=300)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0))
