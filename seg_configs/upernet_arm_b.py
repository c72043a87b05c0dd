# UperNet, ARM-B (768 x 12), AR-pretrained: the paper's segmentation row (Table 4: 47.7 mIoU there,
# most likely without test-time augmentation).
#
#   bash tools/dist_train.sh seg_configs/upernet_arm_b.py 8
#
# Batch 16 = 8 GPUs x 2 crops of 512 x 512; 160,000 iterations.
# Needs checkpoints/arm_b_pretrain.pth (tools/convert_checkpoint.py). Everything is as in the bases:
# lr 6e-5, weight decay 0.01, drop path 0.1, no layer decay. Several sizes and flips: tools/test.py
# ... --tta
_base_ = [
    "_base_/upernet_arm.py",
    "_base_/ade20k.py",
    "_base_/schedule_160k.py",
    "_base_/runtime.py",
]
