# Cascade Mask R-CNN in the style of ViTDet: three box heads, each trained on the boxes of the one before, and mmdet's
# three mask heads (ViTDet has one).
_base_ = "mask_rcnn_arm_vitdet.py"

_bbox_head = {
    key: value for key, value in _base_.model.roi_head.bbox_head.items() if key not in ("bbox_coder", "_scope_")
}
_rcnn = _base_.model.train_cfg.rcnn
model = dict(
    type="CascadeRCNN",
    roi_head=dict(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 1, 1],  # detectron2's; mmdet's are 1, 0.5, 0.25
        bbox_head=[
            dict(
                _bbox_head,
                reg_class_agnostic=True,
                bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=stds),
            )
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
        ],
    ),
    train_cfg=dict(
        rcnn=[
            dict(
                _rcnn,
                assigner=dict(
                    _rcnn.assigner, pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou, match_low_quality=False
                ),
            )
            for iou in (0.5, 0.6, 0.7)
        ],
    ),
)
del _bbox_head, _rcnn
