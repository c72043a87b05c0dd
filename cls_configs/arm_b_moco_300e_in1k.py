# ARM-B on ImageNet-1K from 300 epochs of MoCo v3, finetuned as from AR. Paper, Table 9: 81.4 top-1.
#
#   python tools/convert_checkpoint.py work_dirs/moco_arm_b_300e/epoch_300.pth checkpoints/arm_b_moco_300e.pth --to backbone
#   bash tools/dist_train.sh cls_configs/arm_b_moco_300e_in1k.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = "arm_b_in1k.py"
model = dict(init_cfg=dict(checkpoint="checkpoints/arm_b_moco_300e.pth"))
