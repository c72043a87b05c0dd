# Cascade Mask R-CNN with AR-pretrained ARM-H (1536 wide, 24 blocks) by ViTDet's protocol: last block, simple pyramid,
# LayerNorm, large-scale jittering, 100 epochs, layer decay 0.9, drop path 0.5. The ViTDet paper reports a cascade for
# each size; no result has been published for ARM.
#
#   bash tools/dist_train.sh det_configs/cascade_mask_rcnn_arm_h_vitdet.py 8
#
# Batch 64 = 8 GPUs x 8 images; 100 epochs of 1,833 iterations.
# If memory runs out: --cfg-options model.backbone.with_cp=full (recomputes whole blocks in the backward).
_base_ = "cascade_mask_rcnn_arm_b_vitdet.py"
model = dict(
    backbone=dict(
        arch="huge",
        out_indices=[23],
        drop_path_rate=0.5,
        with_cp="selective",
        init_cfg=dict(checkpoint="checkpoints/arm_h_pretrain.pth"),
    ),
    neck=dict(in_channels=1536),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.9))
