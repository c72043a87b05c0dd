# Mask R-CNN with ARM-L (1024 wide, 24 blocks). No dense-prediction result has been published for ARM-L.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_arm_l.py 8
#
# Batch 16 = 8 GPUs x 2 images; 36 epochs of 7,330 iterations.
# Drop path 0.3 is our choice: the value of ARM-L's ImageNet finetuning.
# If memory runs out: --cfg-options model.backbone.with_cp=full (recomputes whole blocks in the backward).
_base_ = [
    "_base_/mask_rcnn_arm.py",
    "_base_/coco_instance.py",
    "_base_/schedule_36e.py",
    "_base_/runtime.py",
]
model = dict(
    backbone=dict(
        arch="large",
        drop_path_rate=0.3,
        with_cp="selective",
        init_cfg=dict(checkpoint="checkpoints/arm_l_pretrain.pth"),
    ),
    neck=[
        dict(type="ARMPyramid", in_channels=1024, norm_cfg=dict(type="GN")),
        dict(type="FPN", in_channels=[1024] * 4, out_channels=256, num_outs=5),
    ],
)
