# ARM-S (384 wide, 12 blocks), our own size for small machines, with a narrower decoder.
#   tools/dist_train.sh pretrain/configs/arm_s.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_imagenet_1600e.py"]

model = dict(arch="small", decoder_dim=256)
