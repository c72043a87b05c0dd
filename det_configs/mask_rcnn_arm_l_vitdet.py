# Mask R-CNN with AR-pretrained ARM-L (1024 wide, 24 blocks) by ViTDet's protocol: last block, simple pyramid,
# LayerNorm, large-scale jittering, 100 epochs, layer decay 0.8, drop path 0.4. ViTDet reports 55.5 box AP, 49.2 mask AP
# with ViT-L from MAE; no result has been published for ARM.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_arm_l_vitdet.py 8
#
# Batch 64 = 8 GPUs x 8 images; 100 epochs of 1,833 iterations.
# If memory runs out: --cfg-options model.backbone.with_cp=full (recomputes whole blocks in the backward).
_base_ = "mask_rcnn_arm_b_vitdet.py"
model = dict(
    backbone=dict(
        arch="large",
        out_indices=[23],
        drop_path_rate=0.4,
        with_cp="selective",
        init_cfg=dict(checkpoint="checkpoints/arm_l_pretrain.pth"),
    ),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.8))
