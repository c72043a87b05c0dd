# ARM-B on ImageNet-1K from AR pretraining, 224 x 224, 100 epochs. Paper: 83.2 top-1.
#
#   bash tools/dist_train.sh cls_configs/arm_b_in1k.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = ["_base_/arm.py", "_base_/imagenet.py", "_base_/schedule_100e.py", "_base_/runtime.py"]
