# Mask R-CNN with AR-pretrained ARM-B (768 wide, 12 blocks). Paper, Table 4: 49.2 box AP, 43.9 mask AP.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_arm_b.py 8
#
# Batch 16 = 8 GPUs x 2 images; 36 epochs of 7,330 iterations.
# Starts from checkpoints/arm_b_pretrain.pth, which tools/convert_checkpoint.py writes.
_base_ = [
    "_base_/mask_rcnn_arm.py",
    "_base_/coco_instance.py",
    "_base_/schedule_36e.py",
    "_base_/runtime.py",
]
