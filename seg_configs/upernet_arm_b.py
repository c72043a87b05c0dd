# UperNet with AR-pretrained ARM-B (768 wide, 12 blocks). Paper, Table 4: 47.7 mIoU, most likely without test-time
# augmentation.
#
#   bash tools/dist_train.sh seg_configs/upernet_arm_b.py 8
#
# Batch 16 = 8 GPUs x 2 crops of 512 x 512; 160,000 iterations.
# Starts from checkpoints/arm_b_pretrain.pth, which tools/convert_checkpoint.py writes. Multi-scale testing:
# tools/test.py --tta.
_base_ = [
    "_base_/upernet_arm.py",
    "_base_/ade20k.py",
    "_base_/schedule_160k.py",
    "_base_/runtime.py",
]
