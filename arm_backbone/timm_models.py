"""The ARM, Vim and VMamba classifiers in timm's registry (ARM Table 1; tiny and small of ARM are our additions).

To load a checkpoint of any kind, the authors' included: `timm.create_model(NAME, pretrained=True,
pretrained_cfg_overlay=dict(file=PATH))`. timm's own `checkpoint_path=` needs a state dict of exactly this model. timm
drops arguments that are None: give `cls_token="none"` for a model without a class token.
"""

import logging

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from .checkpoint.files import model_state
from .checkpoint.load import fit_state
from .classifier import ARMClassifier
from .vim import VimClassifier
from .vmamba_classifier import VMambaClassifier

_logger = logging.getLogger(__name__)


def _cfg(size: int) -> dict:
    """timm's pretrained_cfg of a model for square images of `size` pixels."""
    return dict(
        num_classes=1000,
        input_size=(3, size, size),
        fixed_input_size=True,  # timm sets img_size to input_size
        crop_pct=0.875 if size <= 224 else 1.0,  # as in the reference code
        crop_mode="squash",  # as in the reference code: resize to a square, then crop the centre
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
    | {
        name: _cfg(224) | dict(crop_mode="center")  # as in Vim's code: resize the shorter side, then crop the centre
        for name in (
            "vim_tiny_patch16_224",
            "vim_small_patch16_224",
            "vim_base_patch16_224",
            "vim_large_patch16_224",
            "vim_huge_patch16_224",
            "vim_tiny_patch16_stride8_224",
            "vim_small_patch16_stride8_224",
        )
    }
    | {
        name: _cfg(224) | dict(crop_mode="center", fixed_input_size=False, first_conv="stem.0.conv")
        for name in ("vmamba_tiny_224", "vmamba_small_224", "vmamba_base_224")
    }
)


def checkpoint_filter_fn(checkpoint: dict, model: ARMClassifier | VMambaClassifier) -> dict[str, Tensor]:
    """Adapt a checkpoint of any kind to `model`; timm calls this before loading.

    Tensors that the file may lack (see `arm_backbone.checkpoint.load`) keep their initial values, with a warning. So
    does the head if the file has one for another number of classes; a head for the model's number of classes is kept,
    whatever number timm's pretrained_cfg states.

    Returns:
        a complete state dict of `model`.

    Raises:
        CheckpointError: if the checkpoint does not fit the model.
    """
    state, accounting = fit_state(model, model_state(checkpoint), "the checkpoint")
    dropped = {name: accounting.dropped[name] for name in accounting.new if name in accounting.dropped}
    absent = sorted(accounting.new.keys() - dropped.keys())
    if absent:
        _logger.warning("not in the checkpoint, initial values kept: %s", ", ".join(absent))
    if dropped:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in dropped.items())
        _logger.warning("dropped from the checkpoint, initial values kept: %s", reasons)
    if "head.weight" in state:  # else timm drops the head of a file for another number of classes than the default
        model.pretrained_cfg["num_classes"] = model.num_classes
    return model.state_dict() | state


def _create(
    name: str,
    pretrained: bool,
    dynamic_img_size: bool = True,
    model_class: type[ARMClassifier] | type[VMambaClassifier] = ARMClassifier,
    **kwargs,
) -> ARMClassifier | VMambaClassifier:
    """Build a model as timm does: pretrained_cfg, weights and `features_only`.

    Raises:
        ValueError: for `dynamic_img_size=False`, which timm's vision transformers can have.
    """
    if not dynamic_img_size:
        encoder = model_class.encoder_name
        raise ValueError(f"dynamic_img_size=False: {encoder} takes images of any size; leave the argument out")
    if kwargs.get("cls_token") == "none":
        kwargs["cls_token"] = None
    return build_model_with_cfg(
        model_class,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter"),
        **kwargs,
    )


@register_model
def arm_tiny_patch16_224(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-Ti for 224 x 224 pixels."""
    return _create("arm_tiny_patch16_224", pretrained, **dict(arch="tiny") | kwargs)


@register_model
def arm_tiny_patch16_384(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-Ti for 384 x 384 pixels."""
    return _create("arm_tiny_patch16_384", pretrained, **dict(arch="tiny") | kwargs)


@register_model
def arm_small_patch16_224(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-S for 224 x 224 pixels."""
    return _create("arm_small_patch16_224", pretrained, **dict(arch="small") | kwargs)


@register_model
def arm_small_patch16_384(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-S for 384 x 384 pixels."""
    return _create("arm_small_patch16_384", pretrained, **dict(arch="small") | kwargs)


@register_model
def arm_base_patch16_224(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-B for 224 x 224 pixels."""
    return _create("arm_base_patch16_224", pretrained, **dict(arch="base") | kwargs)


@register_model
def arm_base_patch16_384(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-B for 384 x 384 pixels."""
    return _create("arm_base_patch16_384", pretrained, **dict(arch="base") | kwargs)


@register_model
def arm_large_patch16_224(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-L for 224 x 224 pixels."""
    return _create("arm_large_patch16_224", pretrained, **dict(arch="large") | kwargs)


@register_model
def arm_large_patch16_384(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-L for 384 x 384 pixels."""
    return _create("arm_large_patch16_384", pretrained, **dict(arch="large") | kwargs)


@register_model
def arm_huge_patch16_224(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-H for 224 x 224 pixels."""
    return _create("arm_huge_patch16_224", pretrained, **dict(arch="huge") | kwargs)


@register_model
def arm_huge_patch16_384(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-H for 384 x 384 pixels."""
    return _create("arm_huge_patch16_384", pretrained, **dict(arch="huge") | kwargs)


@register_model
def arm_base_patch16_stride8_448(pretrained: bool = False, **kwargs) -> ARMClassifier:
    """ARM-B for 448 x 448 pixels with overlapping patches (stride 8): 55 x 55 tokens."""
    return _create("arm_base_patch16_stride8_448", pretrained, **dict(arch="base", patch_stride=8) | kwargs)


def _create_vim(name: str, pretrained: bool, **kwargs) -> VimClassifier:
    return _create(name, pretrained, model_class=VimClassifier, **kwargs)


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs) -> VimClassifier:
    """Vim-Ti for 224 x 224 pixels."""
    return _create_vim("vim_tiny_patch16_224", pretrained, **dict(arch="tiny") | kwargs)


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs) -> VimClassifier:
    """Vim-S for 224 x 224 pixels."""
    return _create_vim("vim_small_patch16_224", pretrained, **dict(arch="small") | kwargs)


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs) -> VimClassifier:
    """Vim-B for 224 x 224 pixels."""
    return _create_vim("vim_base_patch16_224", pretrained, **dict(arch="base") | kwargs)


@register_model
def vim_large_patch16_224(pretrained: bool = False, **kwargs) -> VimClassifier:
    """Vim-L for 224 x 224 pixels, of the ARM paper."""
    return _create_vim("vim_large_patch16_224", pretrained, **dict(arch="large") | kwargs)


@register_model
def vim_huge_patch16_224(pretrained: bool = False, **kwargs) -> VimClassifier:
    """Vim-H for 224 x 224 pixels, of the ARM paper."""
    return _create_vim("vim_huge_patch16_224", pretrained, **dict(arch="huge") | kwargs)


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs) -> VimClassifier:
    """Vim-Ti for 224 x 224 pixels with overlapping patches (stride 8): 27 x 27 tokens."""
    return _create_vim("vim_tiny_patch16_stride8_224", pretrained, **dict(arch="tiny", patch_stride=8) | kwargs)


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs) -> VimClassifier:
    """Vim-S for 224 x 224 pixels with overlapping patches (stride 8): 27 x 27 tokens."""
    return _create_vim("vim_small_patch16_stride8_224", pretrained, **dict(arch="small", patch_stride=8) | kwargs)


def _create_vmamba(name: str, pretrained: bool, **kwargs) -> VMambaClassifier:
    return _create(name, pretrained, model_class=VMambaClassifier, **dict(out_indices=(0, 1, 2, 3)) | kwargs)


@register_model
def vmamba_tiny_224(pretrained: bool = False, **kwargs) -> VMambaClassifier:
    """VMamba-T (s1l8) for images of any size, published for 224 x 224 pixels."""
    return _create_vmamba("vmamba_tiny_224", pretrained, **dict(arch="tiny") | kwargs)


@register_model
def vmamba_small_224(pretrained: bool = False, **kwargs) -> VMambaClassifier:
    """VMamba-S (s2l15) for images of any size, published for 224 x 224 pixels."""
    return _create_vmamba("vmamba_small_224", pretrained, **dict(arch="small") | kwargs)


@register_model
def vmamba_base_224(pretrained: bool = False, **kwargs) -> VMambaClassifier:
    """VMamba-B (s2l15) for images of any size, published for 224 x 224 pixels."""
    return _create_vmamba("vmamba_base_224", pretrained, **dict(arch="base") | kwargs)
