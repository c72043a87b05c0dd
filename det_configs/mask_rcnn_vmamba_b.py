# mask_rcnn_arm_b.py with VMamba-B (128 to 1024 wide, 21 blocks in four stages), trained with labels only: data, schedule
# and heads are ARM's. The stages' maps, with strides 4 to 32, go straight into FPN; drop path is that of its ImageNet
# training. The paper reports no detection result for it; VMamba's authors report 49.2 box AP, 44.1 mask AP after 12
# epochs.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_vmamba_b.py 8
#
# Batch 16 = 8 GPUs x 2 images; 36 epochs of 7,330 iterations.
# The checkpoint is VMamba's published one: tools/convert_checkpoint.py VMAMBA_B.pth checkpoints/vmamba_b_in1k.pth --to
# classifier
_base_ = "mask_rcnn_arm_b.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="VMamba",
        arch="base",
        drop_path_rate=0.6,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/vmamba_b_in1k.pth"),
    ),
    neck=dict(_delete_=True, type="FPN", in_channels=[128, 256, 512, 1024], out_channels=256, num_outs=5),
)
