# MAE instead of arm.py's AR pretraining: the same images, batches, epochs and learning rate. ARM-Ti with one causal scan
# reads a quarter of the patches of 224 x 224 pixels.
#   python tools/pretrain.py pretrain/configs/photographs/mae.py --data photos.txt --data-prefix data --amp
_base_ = ["./arm.py"]

model = dict(
    _delete_=True,
    type="MAEPretrainer",
    arch="tiny",
    img_size=224,
    decoder_dim=128,
    decoder_depth=4,
    decoder_heads=4,
    data_preprocessor=_base_.model.data_preprocessor,
)
train_dataloader = dict(dataset=dict(size=224))
optim_wrapper = dict(clip_grad=None)
