# Mask R-CNN on ARM-Ti with narrow heads and few proposals, for small machines.
_base_ = "mask_rcnn_arm.py"
model = dict(
    backbone=dict(
        arch="tiny",
        drop_path_rate=0.0,  # too few iterations to need it
        init_cfg=dict(checkpoint="checkpoints/arm_ti_pretrain.pth"),
    ),
    neck=[
        dict(type="ARMPyramid", in_channels=192, norm_cfg=dict(type="GN")),
        dict(type="FPN", in_channels=[192] * 4, out_channels=64, num_outs=5),
    ],
    # the smallest anchor is 16 pixels: objects are small in small images
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100)),
)
