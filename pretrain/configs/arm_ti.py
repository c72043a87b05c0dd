# ARM-Ti (192 wide, 12 blocks), our own size for small machines, with a narrower decoder.
#   python tools/pretrain.py --model arm_tiny --data IMAGES --epochs 20 --batch-size 32 --auto-scale-lr
_base_ = ["./_base_/arm_imagenet_1600e.py"]

model = dict(arch="tiny", decoder_dim=128)
