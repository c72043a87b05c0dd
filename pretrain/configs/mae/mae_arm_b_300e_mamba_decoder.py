# MAE with ARM-B, one causal scan and a class token, and FastVim's decoder of two blocks 512 wide (here ARM's blocks with
# four scans), 300 epochs.
#   tools/dist_train.sh pretrain/configs/mae/mae_arm_b_300e_mamba_decoder.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/mae_imagenet_1600e.py"]

model = dict(cls_token="middle", decoder_blocks="mamba", decoder_depth=2)
train_cfg = dict(max_epochs=300)
