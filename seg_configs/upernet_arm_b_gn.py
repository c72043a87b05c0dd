# upernet_arm_b.py for one GPU: GroupNorm instead of SyncBN, whose statistics over a few images are too noisy (UPerHead
# pools a map to 1 x 1), and selective activation checkpointing.
#
#   bash tools/dist_train.sh seg_configs/upernet_arm_b_gn.py 1
#
# Batch 16 = 1 GPU x 16 crops of 512 x 512; 160,000 iterations.
# For less memory use fewer crops and scale the learning rate:
#   ... --auto-scale-lr --cfg-options train_dataloader.batch_size=4
_base_ = "upernet_arm_b.py"
model = dict(
    backbone=dict(with_cp="selective"),
    neck=dict(norm_cfg=dict(type="GN", num_groups=32)),
    decode_head=dict(norm_cfg=dict(type="GN", num_groups=32)),
    auxiliary_head=dict(norm_cfg=dict(type="GN", num_groups=32)),
)
train_dataloader = dict(batch_size=16, num_workers=8)
