# Linear probe of AR-pretrained Vim-B: a frozen encoder with the single causal scan of pretraining and no class token, by
# the protocol of arm_b_linear.py. Not in the paper. tools/knn.py takes it, too.
#
#   bash tools/dist_train.sh cls_configs/vim_b_linear.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = "arm_b_linear.py"
model = dict(type="VimLinearProbe", init_cfg=dict(checkpoint="checkpoints/vim_b_pretrain.pth"))
