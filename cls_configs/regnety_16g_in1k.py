# RegNetY-16G on ImageNet-1K, 300 epochs from scratch with the recipe of mambamlp_b_in1k.py, so that the two differ in
# the network only. DeiT's paper gives 82.9 for its own recipe.
#
#   bash tools/dist_train.sh cls_configs/regnety_16g_in1k.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = "deit_b_in1k.py"
model = dict(name="regnety_160")
