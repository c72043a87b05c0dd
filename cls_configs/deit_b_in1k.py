# DeiT-B (ViT-B/16) on ImageNet-1K, 300 epochs from scratch with the recipe of mambamlp_b_in1k.py, so that the two
# differ in the network only. DeiT's own recipe (batch 1024, lr 1e-3, repeated augmentation) gives 81.8.
#
#   bash tools/dist_train.sh cls_configs/deit_b_in1k.py 8
#
# Batch 1024 = 8 GPUs x 128 images.
_base_ = "mambamlp_b_in1k.py"
model = dict(
    _delete_=True,
    type="TimmClassifier",
    name="deit_base_patch16_224",
    num_classes=1000,
    drop_path_rate=0.1,
    data_preprocessor=_base_.model.data_preprocessor,
)
