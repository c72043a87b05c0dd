# Mask R-CNN with AR-pretrained ARM-B (768 wide, 12 blocks) by ViTDet's protocol: last block, simple pyramid, LayerNorm,
# large-scale jittering, 100 epochs, layer decay 0.7, drop path 0.1. ViTDet reports 51.6 box AP, 45.9 mask AP with ViT-B
# from MAE, and MAE's own 50.3 and 44.9; no result has been published for ARM.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_arm_b_vitdet.py 8
#
# Batch 64 = 8 GPUs x 8 images; 100 epochs of 1,833 iterations.
_base_ = [
    "_base_/mask_rcnn_arm_vitdet.py",
    "_base_/coco_lsj.py",
    "_base_/schedule_vitdet_100e.py",
    "_base_/runtime.py",
]
default_hooks = dict(checkpoint=dict(interval=5))
