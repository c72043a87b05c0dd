# Vim-B on ImageNet-1K from AR pretraining (pretrain/configs/vim_b_300e.py), 100 epochs: ARM-B's finetuning. One scan is
# copied to both directions, and the class token is new. Paper, Table 9: 82.2 top-1. The layer decay is our choice, that
# of ARM-L, which has as many blocks.
#
#   bash tools/dist_train.sh cls_configs/vim_b_ar_in1k.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = ["_base_/vim.py", "_base_/imagenet.py", "_base_/schedule_100e.py", "_base_/runtime.py"]
model = dict(init_cfg=dict(type="Pretrained", checkpoint="checkpoints/vim_b_pretrain.pth"))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.75))
