# Autoregressive pretraining of Vim-Ti (192 wide, 24 blocks) with one causal scan and a narrower decoder, for small
# machines.
#   python tools/pretrain.py pretrain/configs/vim_ti.py --data IMAGES --epochs 20 --batch-size 32 --auto-scale-lr
_base_ = ["./_base_/arm_imagenet_1600e.py"]

model = dict(encoder="Vim", arch="tiny", decoder_dim=128)
