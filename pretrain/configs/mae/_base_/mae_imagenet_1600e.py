# MAE on ARM's encoder: 224 x 224 pixels, 75 % of the patches masked and dropped, 1600 epochs of ImageNet-1K. The recipe
# is MAE's: lr 1.5e-4 x batch / 256, 40 warm-up epochs, no clipping, crops of 0.2 to 1, flips, no colours. A class token,
# where there is one, is not decayed, as in ARM.
_base_ = ["../../_base_/arm_imagenet_1600e.py"]

model = dict(
    _delete_=True,
    type="MAEPretrainer",
    arch="base",
    img_size=224,
    mask_ratio=0.75,
    decoder_dim=512,
    decoder_depth=8,
    data_preprocessor=dict(
        type="ImgDataPreprocessor",
        mean=[123.675, 116.28, 103.53],  # ImageNet's, in 0..255, RGB
        std=[58.395, 57.12, 57.375],
    ),
)
train_dataloader = dict(dataset=dict(size=224))
optim_wrapper = dict(clip_grad=None)
