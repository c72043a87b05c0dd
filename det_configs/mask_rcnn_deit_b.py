# mask_rcnn_arm_b.py with DeiT-B (ViT-B/16, trained with labels on ImageNet-1K) in the place of ARM-B. Paper, Table 4:
# 46.8 box AP, 41.5 mask AP.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_deit_b.py 8
#
# Batch 16 = 8 GPUs x 2 images; 36 epochs of 7,330 iterations.
# timm downloads the weights (DeiT's own, 81.8 top-1). A file of your own: --cfg-options
# model.backbone.init_cfg.checkpoint=FILE
_base_ = "mask_rcnn_arm_b.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        name="deit_base_patch16_224.fb_in1k",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="timm"),
    )
)
