# MoCo v3 with ARM-Ti and narrower heads, for small machines. A small batch has few negatives: a handicap of the method.
#   python tools/pretrain.py pretrain/configs/moco/moco_arm_ti.py --data IMAGES --epochs 20 --batch-size 32 --auto-scale-lr
_base_ = ["./_base_/moco_imagenet_300e.py"]

model = dict(arch="tiny", hidden_dim=1024)
