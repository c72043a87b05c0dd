# As mask_rcnn_arm_b.py without the last crop to 1024 x 1024: Swin's protocol to the letter, up to
# 1333 x 800 in training as in testing. Up to 1.3 times the tokens.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_arm_b_nocrop.py 8
#
# Batch 16 = 8 GPUs x 2 images; 7,330 iterations an epoch, 36 epochs.
_base_ = "mask_rcnn_arm_b.py"
# the crop inside RandomChoice stays
train_pipeline = [step for step in _base_.train_pipeline if step["type"] != "RandomCrop"]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
