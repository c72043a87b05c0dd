# AIM-600M on ImageNet-1K from its autoregressive pretraining, attention both ways. Paper: 84.2 top-1
# (Table 10).
#
#   bash tools/dist_train.sh cls_configs/aim_600m_in1k.py 8
#
# Batch 256 = 8 GPUs x 32 images; 4 batches are accumulated per step: 1024.
# The table's recipe: AdamW, 50 epochs, lr 2e-3, drop path 0.3, RandAugment, mixup, cutmix, label smoothing. It names no
# layer decay, weight decay, warm-up or moving average; these are ARM-L's. The head is AIM's: the mean over the last six
# blocks, read by attention.
# Put AIM's backbone and head files, or the backbone's alone, into checkpoints/aim_600m.pth; see docs/encoders.md.
_base_ = "arm_l_in1k.py"
model = dict(
    _delete_=True,
    type="TimmClassifier",
    name="aim_600m_patch14_224",
    num_classes=1000,
    drop_path_rate=0.3,
    with_cp=True,
    init_cfg=dict(type="Pretrained", checkpoint="checkpoints/aim_600m.pth"),
    data_preprocessor=_base_.model.data_preprocessor,
)
# AIM's own evaluation: the short side becomes 256 pixels, and the centre is cropped
val_dataloader = dict(dataset=dict(transform=dict(crop_mode="center")))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=50)
