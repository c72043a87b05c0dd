# upernet_arm_b.py with MAE's finetuning recipe for ADE20K: lr 1e-4, weight decay 0.05, layer decay 0.65.
# The paper's lr 6e-5 and weight decay 0.01 come from Swin, which starts from supervised weights; weights that were only
# pretrained have to change more.
#
#   bash tools/dist_train.sh seg_configs/upernet_arm_b_mae_recipe.py 8
#
# Batch 16 = 8 GPUs x 2 crops of 512 x 512; 160,000 iterations.
_base_ = "upernet_arm_b.py"
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05), paramwise_cfg=dict(layer_decay=0.65))
