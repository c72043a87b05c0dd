"""Backbones and classifiers in timm's form: the registered model that a checkpoint's weights belong to."""

import timm
from timm.models import is_model
from torch import Tensor

from arm_backbone.arm import resolve_arch
from arm_backbone.checkpoint.accounting import Accounting
from arm_backbone.checkpoint.convert import arch_of, detect_kind
from arm_backbone.checkpoint.load import load_trunk
from arm_backbone.checkpoint.official import encoder_of
from arm_backbone.checkpoint.vmamba import vmamba_arch_of
from arm_backbone.classifier import CLASSIFIERS, ARMClassifier
from arm_backbone.vmamba import VMAMBA_ARCHS, resolve_vmamba_arch
from arm_backbone.vmamba_classifier import VMambaClassifier

# encoder -> arguments of its classifier that determine the model, with timm's defaults
DEFAULTS = {
    "ARM": dict(patch_size=16, scans=4, cls_token="middle", in_chans=3, global_pool="avg"),
    "Vim": dict(patch_size=16, scans=2, cls_token="middle", in_chans=3, global_pool="token"),
    "VMamba": dict(in_chans=3, global_pool="avg"),
}
# arguments of timm's transform for evaluation, with its defaults
_TRANSFORM = dict(interpolation="bilinear", mean=None, std=None, crop_pct=0.875, crop_mode="center")


def arguments_of(state: dict[str, Tensor]) -> dict:
    """Arguments of the encoder's classifier for the tensors of an encoder; only a classifier gets a head.

    One scan of a pretraining (autoregressive or MAE) is to be copied to all, as for a dense model.

    Raises:
        CheckpointError: if the tensors are not those of a complete ARM, Vim or VMamba.
    """
    head, encoder = state.get("head.weight", state.get("classifier.head.weight")), encoder_of(state)
    arguments = vmamba_arch_of(state) if encoder == "VMamba" else arch_of(state)
    arguments["num_classes"] = 0 if head is None else len(head)
    if encoder == "VMamba":
        return arguments
    if arguments["cls_token"] is None and DEFAULTS[encoder]["global_pool"] == "token":
        arguments["global_pool"] = "avg"
    if detect_kind(state).endswith(("pretrain", "mae")):
        arguments["scans"] = DEFAULTS[encoder]["scans"]
    return arguments


def timm_model(
    state: dict[str, Tensor], where: str, arguments: dict
) -> tuple[ARMClassifier | VMambaClassifier, Accounting]:
    """The registered model with the weights of a checkpoint.

    Args:
        state: tensors of a pretraining model, backbone or classifier, of this toolkit or of the authors.
        where: name of the file, for messages.
        arguments: those of the encoder's classifier.

    Returns:
        the model in evaluation mode, and what happened to every tensor.

    Raises:
        CheckpointError: if the tensors are not those of a complete ARM, Vim or VMamba.
    """
    name, extra = registered_name(arguments, encoder_of(state))
    model = timm.create_model(name, num_classes=arguments["num_classes"], **extra)
    return model.eval(), load_trunk(model, state, where)


def registered_name(arguments: dict, encoder: str = "ARM") -> tuple[str, dict]:
    """The name in timm's registry that is nearest to a model, and the arguments that it needs besides."""
    defaults, family = DEFAULTS[encoder], encoder.lower()
    extra = {key: arguments[key] for key in defaults if arguments.get(key, defaults[key]) != defaults[key]}
    if encoder == "VMamba":
        arch = {key: tuple(v) if key != "expand" else v for key, v in resolve_vmamba_arch(arguments["arch"]).items()}
        size = next((name for name, known in VMAMBA_ARCHS.items() if known == arch), None)
        return f"vmamba_{size or 'tiny'}_224", extra if size else extra | dict(arch=arch)
    archs = CLASSIFIERS[encoder].archs
    dims, layers = resolve_arch(arguments.get("arch", "base"), archs)
    size = next((name for name, arch in archs.items() if arch == dict(embed_dims=dims, num_layers=layers)), None)
    image = arguments.get("img_size", 224)
    image = (image, image) if isinstance(image, int) else tuple(image)
    stride = arguments.get("patch_stride") or arguments.get("patch_size", 16)
    strided = "" if stride == 16 else f"_stride{stride}"
    name = f"{family}_{size}_patch16{strided}_{image[0]}"
    if "cls_token" in extra and extra["cls_token"] is None:
        extra["cls_token"] = "none"  # noqa: S105 timm drops None
    if size and is_model(name) and image[0] == image[1]:
        return name, extra
    extra["img_size"] = image
    if stride != arguments.get("patch_size", 16):
        extra["patch_stride"] = stride
    if size is None:
        extra["arch"] = dict(embed_dims=dims, num_layers=layers)
    return f"{family}_{size or 'tiny'}_patch16_224", extra


def data_config(transform: dict | None, img_size: tuple[int, int] | None) -> dict | None:
    """timm's data configuration for the arguments of its transform; None without them.

    Args:
        img_size: the size (height, width) of a model's position table, for which timm has no other key; None: the
            transform's.
    """
    if not transform:
        return None
    if img_size is None:
        given = transform.get("input_size", 224)
        img_size = (given, given) if isinstance(given, int) else tuple(given)[-2:]
    result = {key: transform.get(key) or default for key, default in _TRANSFORM.items()}
    return {key: value for key, value in result.items() if value is not None} | dict(input_size=(3, *img_size))
