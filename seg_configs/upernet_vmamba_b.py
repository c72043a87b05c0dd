# upernet_arm_b.py with VMamba-B (128 to 1024 wide, 21 blocks in four stages), trained with labels only: data, schedule
# and heads are ARM's. The stages' maps, with strides 4 to 32, go straight into the heads; drop path is that of its
# ImageNet training. The paper reports no segmentation result for it; VMamba's authors report 51.0 mIoU.
#
#   bash tools/dist_train.sh seg_configs/upernet_vmamba_b.py 8
#
# Batch 16 = 8 GPUs x 2 crops of 512 x 512; 160,000 iterations.
# The checkpoint is VMamba's published one: tools/convert_checkpoint.py VMAMBA_B.pth checkpoints/vmamba_b_in1k.pth --to
# classifier
_base_ = "upernet_arm_b.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="VMamba",
        arch="base",
        drop_path_rate=0.6,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/vmamba_b_in1k.pth"),
    ),
    neck=None,
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
