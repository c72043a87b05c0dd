# mask_rcnn_arm_b.py with layer-wise learning-rate decay 0.7, ViTDet's value for ViT-B. The paper mentions no decay.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_arm_b_ld.py 8
#
# Batch 16 = 8 GPUs x 2 images; 36 epochs of 7,330 iterations.
_base_ = "mask_rcnn_arm_b.py"
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.7))
