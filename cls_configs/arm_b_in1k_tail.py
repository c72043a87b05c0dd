# ARM-B with the class token at the end of the sequence, read by the head (STAR section 3.4). STAR's paper: 82.86 top-1,
# against 82.54 with the token in the middle, after 300 epochs of STAR pretraining. Backward scans visit the token
# first, forward scans last.
#
#   bash tools/dist_train.sh cls_configs/arm_b_in1k_tail.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = "arm_b_in1k.py"
model = dict(cls_token="tail", global_pool="token")
