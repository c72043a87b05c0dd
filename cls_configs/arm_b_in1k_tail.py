# ARM-B with the class token at the tail of the sequence, read by the head (STAR section 3.4; its paper: 82.86 against 82.54
# in the middle, 300 epochs of STAR pretraining). The reversed scans visit it first, the forward ones last.
#
#   bash tools/dist_train.sh cls_configs/arm_b_in1k_tail.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = "arm_b_in1k.py"
model = dict(cls_token="tail", global_pool="token")
