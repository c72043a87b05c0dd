# Mask R-CNN, ARM-B (768 x 12), AR-pretrained: the paper's detection row (Table 4: 49.2 box AP, 43.9
# mask AP there).
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_arm_b.py 8
#
# Batch 16 = 8 GPUs x 2 images; 7,330 iterations an epoch, 36 epochs.
# Needs checkpoints/arm_b_pretrain.pth (tools/convert_checkpoint.py). Everything is as in the bases:
# lr 1e-4, weight decay 0.05, drop path 0.1, no layer decay.
_base_ = [
    "_base_/mask_rcnn_arm.py",
    "_base_/coco_instance.py",
    "_base_/schedule_36e.py",
    "_base_/runtime.py",
]
