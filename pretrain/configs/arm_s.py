# ARM-S (384 wide, 12 blocks), our size for small machines, with a decoder to match.
#   tools/dist_train.sh pretrain/configs/arm_s.py 8          8 GPUs x 256 images = 2048
_base_ = ["./_base_/arm_imagenet_1600e.py"]

model = dict(arch="small", decoder_dim=256)
