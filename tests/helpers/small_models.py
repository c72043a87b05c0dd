"""Small models: seeded ones, and configurations narrowed until they train in seconds."""

import torch

from arm_pretrain import ARMPretrainer

ARCH = dict(embed_dims=32, num_layers=4)
VMAMBA_ARCH = dict(widths=(16, 32, 48, 64), depths=(1, 1, 2, 1), expand=2)


def pretrainer(**arguments) -> ARMPretrainer:
    torch.manual_seed(0)
    model = ARMPretrainer(**dict(arch=ARCH, img_size=96, cluster_side=2, decoder_dim=64) | arguments)
    return model.double().eval()


def narrow_detector(model, width: int = 16):
    """Narrow the configuration of a Mask R-CNN in place: few and thin layers, few proposals, no weights to load."""
    model.backbone.update(arch=dict(ARCH), init_cfg=None)
    model.neck[0].in_channels = ARCH["embed_dims"]
    model.neck[1].update(in_channels=[ARCH["embed_dims"]] * 4, out_channels=width)
    model.rpn_head.update(in_channels=width, feat_channels=width)
    model.roi_head.bbox_roi_extractor.out_channels = model.roi_head.mask_roi_extractor.out_channels = width
    model.roi_head.bbox_head.update(in_channels=width, fc_out_channels=32)
    model.roi_head.mask_head.update(in_channels=width, conv_out_channels=width, num_convs=1)
    model.train_cfg.rpn.sampler.num = 32
    model.train_cfg.rcnn.sampler.num = 16
    for proposals in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        proposals.update(nms_pre=100, max_per_img=50)
    return model


def narrow_segmentor(model, size: int, width: int = 32):
    """Narrow the configuration of a UperNet in place, for crops of `size` pixels, without weights to load."""
    model.data_preprocessor.size = (size, size)
    model.backbone.update(arch=dict(ARCH), init_cfg=None)
    model.neck.in_channels = ARCH["embed_dims"]
    model.decode_head.update(in_channels=[ARCH["embed_dims"]] * 4, channels=width)
    model.auxiliary_head.update(in_channels=ARCH["embed_dims"], channels=width)
    if model.test_cfg.mode == "slide":
        model.test_cfg.update(crop_size=(size, size), stride=(size * 2 // 3, size * 2 // 3))
    return model
