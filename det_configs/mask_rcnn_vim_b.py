# mask_rcnn_arm_b.py with Vim-B (768 wide, 24 blocks), trained with labels only: data, schedule and heads are ARM's. The
# class token is scanned, but not part of the maps. The paper reports no detection result for it.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_vim_b.py 8
#
# Batch 16 = 8 GPUs x 2 images; 36 epochs of 7,330 iterations.
# The checkpoint is Vim's published one: tools/convert_checkpoint.py VIM_B.pth checkpoints/vim_b_in1k.pth --to classifier
_base_ = "mask_rcnn_arm_b.py"
model = dict(
    backbone=dict(
        type="Vim",
        scans=2,
        cls_token="middle",
        init_cfg=dict(checkpoint="checkpoints/vim_b_in1k.pth"),
    )
)
