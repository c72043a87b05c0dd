# Mask R-CNN with ARM-S (384 wide, 12 blocks): our own size for small machines, not in the paper.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_arm_s.py 8
#
# Batch 16 = 8 GPUs x 2 images; 36 epochs of 7,330 iterations.
_base_ = [
    "_base_/mask_rcnn_arm.py",
    "_base_/coco_instance.py",
    "_base_/schedule_36e.py",
    "_base_/runtime.py",
]
model = dict(
    backbone=dict(
        arch="small",
        init_cfg=dict(checkpoint="checkpoints/arm_s_pretrain.pth"),
    ),
    neck=[
        dict(type="ARMPyramid", in_channels=384, norm_cfg=dict(type="GN")),
        dict(type="FPN", in_channels=[384] * 4, out_channels=256, num_outs=5),
    ],
)
