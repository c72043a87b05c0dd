# MambaMLP-L: ARM-L's network trained with labels only, 300 epochs from scratch. Paper: 81.4 top-1; of the
# recipe it says only "supervised". Our choice is the finetuning recipe without layer decay, for 300 epochs as in DeiT.
#
#   bash tools/dist_train.sh cls_configs/mambamlp_l_in1k.py 8
#
# Batch 256 = 8 GPUs x 32 images; 4 batches are accumulated per step: 1024.
_base_ = "arm_l_in1k.py"
model = dict(init_cfg=None)
train_cfg = dict(max_epochs=300)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0))
