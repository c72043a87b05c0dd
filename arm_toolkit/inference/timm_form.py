"""Backbones and classifiers in timm's form: the registered model that a checkpoint's weights belong to."""

import timm
from timm.models import is_model
from torch import Tensor

from arm_backbone.arm import ARCHS, resolve_arch
from arm_backbone.checkpoint.accounting import Accounting
from arm_backbone.checkpoint.convert import arch_of, detect_kind
from arm_backbone.checkpoint.load import load_trunk
from arm_backbone.classifier import ARMClassifier

# arguments of ARMClassifier that determine the model, with timm's defaults
DEFAULTS = dict(patch_size=16, scans=4, cls_token="middle", in_chans=3, global_pool="avg")
# arguments of timm's transform for evaluation, with its defaults
_TRANSFORM = dict(interpolation="bilinear", mean=None, std=None, crop_pct=0.875, crop_mode="center")


def arguments_of(state: dict[str, Tensor]) -> dict:
    """Arguments of `ARMClassifier` for the tensors of an encoder; only a classifier gets a head.

    One scan of a pretraining checkpoint is to be copied to four, as for a dense model.

    Raises:
        CheckpointError: if the tensors are not those of a complete ARM model.
    """
    head = state.get("head.weight")
    arguments = arch_of(state) | dict(num_classes=0 if head is None else len(head))
    return arguments | dict(scans=4) if detect_kind(state).endswith("pretrain") else arguments


def timm_model(state: dict[str, Tensor], where: str, arguments: dict) -> tuple[ARMClassifier, Accounting]:
    """The registered model with the weights of a checkpoint.

    Args:
        state: tensors of a pretraining model, backbone or classifier, of this toolkit or of the authors.
        where: name of the file, for messages.
        arguments: those of `ARMClassifier`.

    Returns:
        the model in evaluation mode, and what happened to every tensor.

    Raises:
        CheckpointError: if the tensors are not those of a complete ARM model.
    """
    name, extra = registered_name(arguments)
    model = timm.create_model(name, num_classes=arguments["num_classes"], **extra)
    return model.eval(), load_trunk(model, state, where)


def registered_name(arguments: dict) -> tuple[str, dict]:
    """The name in timm's registry that is nearest to a model, and the arguments that it needs besides."""
    dims, layers = resolve_arch(arguments.get("arch", "base"))
    size = next((name for name, arch in ARCHS.items() if arch == dict(embed_dims=dims, num_layers=layers)), None)
    image = arguments.get("img_size", 224)
    image = (image, image) if isinstance(image, int) else tuple(image)
    stride = arguments.get("patch_stride") or arguments.get("patch_size", 16)
    strided = "" if stride == 16 else f"_stride{stride}"
    name = f"arm_{size}_patch16{strided}_{image[0]}"
    extra = {key: arguments[key] for key in DEFAULTS if arguments.get(key, DEFAULTS[key]) != DEFAULTS[key]}
    if "cls_token" in extra and extra["cls_token"] is None:
        extra["cls_token"] = "none"  # noqa: S105 timm drops None
    if size and is_model(name) and image[0] == image[1]:
        return name, extra
    extra["img_size"] = image
    if stride != arguments.get("patch_size", 16):
        extra["patch_stride"] = stride
    if size is None:
        extra["arch"] = dict(embed_dims=dims, num_layers=layers)
    return f"arm_{size or 'tiny'}_patch16_224", extra


def data_config(transform: dict | None, img_size: tuple[int, int]) -> dict | None:
    """timm's data configuration for the arguments of its transform; None without them.

    Args:
        img_size: the model's image size (height, width); timm has no other for images.
    """
    if not transform:
        return None
    result = {key: transform.get(key) or default for key, default in _TRANSFORM.items()}
    return {key: value for key, value in result.items() if value is not None} | dict(input_size=(3, *img_size))
