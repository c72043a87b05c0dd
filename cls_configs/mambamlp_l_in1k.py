# MambaMLP-L, the same network trained with labels alone, 300 epochs from scratch (paper: 81.4 top-1, 'supervised' and no
# more; the finetuning recipe without layer decay and DeiT's number of epochs are our reading).
#
#   bash tools/dist_train.sh cls_configs/mambamlp_l_in1k.py 8
#
# Batch 256 = 8 GPUs x 32 images.
_base_ = "arm_l_in1k.py"
model = dict(init_cfg=None)
train_cfg = dict(max_epochs=300)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0))
