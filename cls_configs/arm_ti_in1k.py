# ARM-Ti (192 wide, 12 blocks), our own size for small machines, with ARM-B's recipe.
#
#   bash tools/dist_train.sh cls_configs/arm_ti_in1k.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = "arm_b_in1k.py"
model = dict(arch="tiny", init_cfg=dict(checkpoint="checkpoints/arm_ti_pretrain.pth"))
