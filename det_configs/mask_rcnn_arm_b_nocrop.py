# mask_rcnn_arm_b.py without the final 1024 x 1024 crop: exactly Swin's protocol, with images of up to 1333 x 800 in
# training and testing. This makes up to 1.3 times as many tokens.
#
#   bash tools/dist_train.sh det_configs/mask_rcnn_arm_b_nocrop.py 8
#
# Batch 16 = 8 GPUs x 2 images; 36 epochs of 7,330 iterations.
_base_ = "mask_rcnn_arm_b.py"
# the RandomCrop inside RandomChoice stays
train_pipeline = [step for step in _base_.train_pipeline if step["type"] != "RandomCrop"]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
