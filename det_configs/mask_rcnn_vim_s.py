# mask_rcnn_arm_s.py with Vim-S (384 wide, 24 blocks), trained with labels only: data, schedule and heads are ARM's. The
# class token is scanned, but not part of the maps. Paper, Table 4: 43.2 box AP, 40.0 mask AP.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_vim_s.py 8
#
# Batch 16 = 8 GPUs x 2 images; 36 epochs of 7,330 iterations.
# The checkpoint is Vim's published one: tools/convert_checkpoint.py VIM_S.pth checkpoints/vim_s_in1k.pth --to classifier
_base_ = "mask_rcnn_arm_s.py"
model = dict(
    backbone=dict(
        type="Vim",
        scans=2,
        cls_token="middle",
        init_cfg=dict(checkpoint="checkpoints/vim_s_in1k.pth"),
    )
)
