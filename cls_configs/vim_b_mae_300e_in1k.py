# Vim-B on ImageNet-1K from 300 epochs of MAE, finetuned as from AR. Paper, Table 9: 81.4 top-1.
#
#   python tools/convert_checkpoint.py work_dirs/mae_vim_b_300e/epoch_300.pth checkpoints/vim_b_mae_300e.pth --to backbone
#   bash tools/dist_train.sh cls_configs/vim_b_mae_300e_in1k.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = "vim_b_ar_in1k.py"
model = dict(init_cfg=dict(checkpoint="checkpoints/vim_b_mae_300e.pth"))
