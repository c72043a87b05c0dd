# Mask R-CNN in the style of ViTDet (arXiv 2203.16527): ARM-B's last map alone -> simple pyramid -> heads with LayerNorm,
# two convolutions in the RPN, and four convolutions and one linear layer before the boxes.
_base_ = "mask_rcnn_arm.py"
model = dict(
    # Every image is padded to 1024 x 1024, in testing too, as in ViTDet. The position embedding is resized to the whole
    # grid: on a grid of another shape than in training each patch would get another position.
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(out_indices=[11]),  # the last block
    neck=dict(_delete_=True, type="ARMSimpleFPN", in_channels=768, out_channels=256, num_outs=5),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", norm_cfg=dict(type="LN2d")),
        mask_head=dict(norm_cfg=dict(type="LN2d")),
    ),
)
