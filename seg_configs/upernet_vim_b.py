# upernet_arm_b.py with Vim-B (768 wide, 24 blocks), trained with labels only: data, schedule and heads are ARM's. The
# class token is scanned, but not part of the maps. Paper, Table 4: 45.2 mIoU.
#
#   bash tools/dist_train.sh seg_configs/upernet_vim_b.py 8
#
# Batch 16 = 8 GPUs x 2 crops of 512 x 512; 160,000 iterations.
# The checkpoint is Vim's published one: tools/convert_checkpoint.py VIM_B.pth checkpoints/vim_b_in1k.pth --to classifier
_base_ = "upernet_arm_b.py"
model = dict(
    backbone=dict(
        type="Vim",
        scans=2,
        cls_token="middle",
        init_cfg=dict(checkpoint="checkpoints/vim_b_in1k.pth"),
    )
)
