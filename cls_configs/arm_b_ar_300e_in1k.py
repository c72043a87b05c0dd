# ARM-B on ImageNet-1K from 300 epochs of AR pretraining, finetuned as from 1600. Paper, Table 9: 82.5 top-1.
#
#   python tools/convert_checkpoint.py work_dirs/cluster_64/epoch_300.pth checkpoints/arm_b_ar_300e.pth --to backbone
#   bash tools/dist_train.sh cls_configs/arm_b_ar_300e_in1k.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = "arm_b_in1k.py"
model = dict(init_cfg=dict(checkpoint="checkpoints/arm_b_ar_300e.pth"))
