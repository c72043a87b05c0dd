# Ablation: pixel by pixel, as in iGPT. Paper: 79.8 top-1 after finetuning. The paper's text says images of 144 x 144
# pixels, its table 144 units; we use images of 12 x 12 pixels, 144 units. Before finetuning, resample the 1 x 1
# patches: tools/convert_checkpoint.py --patch-size 16.
#   tools/dist_train.sh pretrain/configs/ablations/pixel_units.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(img_size=12, patch_size=1, cluster_side=1, target="pixels")
train_dataloader = dict(dataset=dict(size=12))
