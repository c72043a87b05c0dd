"""Small models: seeded ones, and configurations narrowed until they train in seconds."""

import torch

from arm_pretrain import ARMPretrainer

ARCH = dict(embed_dims=32, num_layers=4)
VMAMBA_ARCH = dict(widths=(16, 32, 48, 64), depths=(1, 1, 2, 1), expand=2)


def pretrainer(**arguments) -> ARMPretrainer:
    torch.manual_seed(0)
    model = ARMPretrainer(**dict(arch=ARCH, img_size=96, cluster_side=2, decoder_dim=64) | arguments)
    return model.double().eval()


def _narrow_backbone(backbone, neck) -> list[int]:
    """Narrow the configuration of a backbone, and of a pyramid of ours behind it; returns the channels of its maps."""
    backbone.init_cfg = None
    if backbone.type == "TimmBackbone":
        backbone.update(embed_dim=ARCH["embed_dims"], depth=ARCH["num_layers"], num_heads=2)
    elif backbone.type == "VMamba":
        backbone.arch = dict(VMAMBA_ARCH)
        return list(VMAMBA_ARCH["widths"])
    else:
        backbone.arch = dict(ARCH)
    if "out_indices" in backbone:
        backbone.out_indices = [ARCH["num_layers"] - 1]
    neck.in_channels = ARCH["embed_dims"]
    return [ARCH["embed_dims"]] * 4


def narrow_detector(model, width: int = 16):
    """Narrow the configuration of a Mask R-CNN or its cascade in place: few and thin layers, few proposals, no weights
    to load."""
    necks = model.neck if isinstance(model.neck, list) else [model.neck]
    channels = _narrow_backbone(model.backbone, necks[0])
    if necks[-1].type == "FPN":
        necks[-1].in_channels = channels
    necks[-1].out_channels = width
    model.data_preprocessor.pad_size_divisor = min(model.data_preprocessor.pad_size_divisor, 128)
    model.rpn_head.update(in_channels=width, feat_channels=width)
    model.roi_head.bbox_roi_extractor.out_channels = model.roi_head.mask_roi_extractor.out_channels = width
    boxes = model.roi_head.bbox_head
    for head in boxes if isinstance(boxes, list) else [boxes]:
        head.update(in_channels=width, fc_out_channels=32)
        if "Conv" in head.type:
            head.conv_out_channels = width
    model.roi_head.mask_head.update(in_channels=width, conv_out_channels=width, num_convs=1)
    model.train_cfg.rpn.sampler.num = 32
    stages = model.train_cfg.rcnn
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.sampler.num = 16
    for proposals in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        proposals.update(nms_pre=100, max_per_img=50)
    return model


def narrow_segmentor(model, size: int, width: int = 32):
    """Narrow the configuration of a UperNet in place, for crops of `size` pixels, without weights to load."""
    model.data_preprocessor.size = (size, size)
    channels = _narrow_backbone(model.backbone, model.get("neck"))
    model.decode_head.update(in_channels=channels, channels=width)
    model.auxiliary_head.update(in_channels=channels[model.auxiliary_head.in_index], channels=width)
    if model.test_cfg.mode == "slide":
        model.test_cfg.update(crop_size=(size, size), stride=(size * 2 // 3, size * 2 // 3))
    return model
