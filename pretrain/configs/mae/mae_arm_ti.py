# MAE with ARM-Ti and one causal scan, with a narrower decoder, for small machines.
#   python tools/pretrain.py pretrain/configs/mae/mae_arm_ti.py --data IMAGES --epochs 20 --batch-size 32 --auto-scale-lr
_base_ = ["./_base_/mae_imagenet_1600e.py"]

model = dict(arch="tiny", decoder_dim=128, decoder_depth=4, decoder_heads=4)
