# MoCo v3 instead of arm.py's AR pretraining: the same images, batches, epochs and learning rate. Its handicap: in a
# batch of 32, 31 negatives instead of 4,095.
#   python tools/pretrain.py pretrain/configs/photographs/moco.py --data photos.txt --data-prefix data --amp
_base_ = ["./arm.py"]

model = dict(
    _delete_=True,
    type="MoCoPretrainer",
    arch="tiny",
    img_size=224,
    hidden_dim=1024,
    data_preprocessor=dict(_base_.model.data_preprocessor, type="ViewsPreprocessor"),
)
train_dataloader = dict(dataset=dict(type="ImageViews", size=224, scale=(0.08, 1.0)))
optim_wrapper = dict(
    _delete_=True,
    type="AmpOptimWrapper",
    dtype="bfloat16",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.1),
)
custom_hooks = [dict(type="FiniteHook"), dict(type="MomentumHook")]
