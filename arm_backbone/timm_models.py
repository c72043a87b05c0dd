"""ARM models in timm's registry (ARM Table 1).

Weights of any kind load, the authors' files too: `timm.create_model(NAME, pretrained=True,
pretrained_cfg_overlay=dict(file=PATH))`. timm's own `checkpoint_path=` takes a state dict of exactly this model. timm
drops arguments that are None, so build `ARMClassifier` for a model without class token.
"""

import logging

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from .checkpoint.files import model_state
from .checkpoint.load import fitted
from .classifier import ARMClassifier

_logger = logging.getLogger(__name__)


def _cfg(size: int) -> dict:
    return dict(
        num_classes=1000,
        input_size=(3, size, size),
        fixed_input_size=True,  # img_size follows input_size
        crop_pct=0.875 if size <= 224 else 1.0,  # reference code
        crop_mode="squash",  # reference code: the image is resized to a square before the centre crop
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        first_conv="patch_embed.proj",
        classifier="head",
    )


default_cfgs = generate_default_cfgs(
    {
        "arm_tiny_patch16_224": _cfg(224),
        "arm_tiny_patch16_384": _cfg(384),
        "arm_small_patch16_224": _cfg(224),
        "arm_small_patch16_384": _cfg(384),
        "arm_base_patch16_224": _cfg(224),
        "arm_base_patch16_384": _cfg(384),
        "arm_large_patch16_224": _cfg(224),
        "arm_large_patch16_384": _cfg(384),
        "arm_huge_patch16_224": _cfg(224),
        "arm_huge_patch16_384": _cfg(384),
        "arm_base_patch16_stride8_448": _cfg(448),
    }
)


def checkpoint_filter_fn(checkpoint: dict, model: ARMClassifier) -> dict[str, Tensor]:
    """Tensors of `model` from a checkpoint of any kind (the authors' too), for timm's loading.

    Tensors that a file need not have (see `arm_backbone.checkpoint.load`) keep their initial values, with a warning.

    Raises:
        CheckpointError: if the file does not fit otherwise.
    """
    state, accounting = fitted(model, model_state(checkpoint), "the checkpoint")
    if accounting.new:
        _logger.warning("not in the checkpoint: %s", ", ".join(sorted(accounting.new)))
    return model.state_dict() | state


def _create(name: str, pretrained: bool, **kwargs) -> ARMClassifier:
    return build_model_with_cfg(
        ARMClassifier,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter"),
        **kwargs,
    )


@register_model
def arm_tiny_patch16_224(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-Ti at 224 pixels."""
    return _create("arm_tiny_patch16_224", pretrained, **dict(arch="tiny") | kwargs)


@register_model
def arm_tiny_patch16_384(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-Ti at 384 pixels."""
    return _create("arm_tiny_patch16_384", pretrained, **dict(arch="tiny") | kwargs)


@register_model
def arm_small_patch16_224(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-S at 224 pixels."""
    return _create("arm_small_patch16_224", pretrained, **dict(arch="small") | kwargs)


@register_model
def arm_small_patch16_384(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-S at 384 pixels."""
    return _create("arm_small_patch16_384", pretrained, **dict(arch="small") | kwargs)


@register_model
def arm_base_patch16_224(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-B at 224 pixels."""
    return _create("arm_base_patch16_224", pretrained, **dict(arch="base") | kwargs)


@register_model
def arm_base_patch16_384(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-B at 384 pixels."""
    return _create("arm_base_patch16_384", pretrained, **dict(arch="base") | kwargs)


@register_model
def arm_large_patch16_224(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-L at 224 pixels."""
    return _create("arm_large_patch16_224", pretrained, **dict(arch="large") | kwargs)


@register_model
def arm_large_patch16_384(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-L at 384 pixels."""
    return _create("arm_large_patch16_384", pretrained, **dict(arch="large") | kwargs)


@register_model
def arm_huge_patch16_224(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-H at 224 pixels."""
    return _create("arm_huge_patch16_224", pretrained, **dict(arch="huge") | kwargs)


@register_model
def arm_huge_patch16_384(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-H at 384 pixels."""
    return _create("arm_huge_patch16_384", pretrained, **dict(arch="huge") | kwargs)


@register_model
def arm_base_patch16_stride8_448(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-B at 448 pixels with overlapping patches: 55 x 55 tokens."""
    return _create("arm_base_patch16_stride8_448", pretrained, **dict(arch="base", patch_stride=8) | kwargs)
