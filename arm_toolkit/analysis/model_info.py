"""Counts the parameters and FLOPs of a model, part by part, given a timm name or a configuration.

Models are built and run on the meta device, which needs no memory, arithmetic or weights.
"""

import difflib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import arm_backbone  # noqa: F401 registers its models
from arm_backbone.arm import ARMTrunk
from arm_backbone.ops.dispatch import resolve_backend
from arm_backbone.vmamba import VMambaTrunk

from ..engine.checks import config_errors
from ..engine.config import load_config
from ..errors import ConfigError, one_line
from ..tables import markdown_table

# (height, width), if neither configuration nor model sets a size
DET_SIZE, SEG_SIZE, CLS_SIZE = (800, 1280), (512, 512), (224, 224)

# part of a trunk -> beginning of the names of its parameters and operators ("module.operator"), in a VMamba after the
# stage; first match wins
TRUNK_PARTS = {
    "patch_embed": r"patch_embed\.",
    "position and class token": r"pos_embed|cls_token|cls_pos_embed",
    "stem": r"stem\.",
    "downsampling": r"downsample\.",
    "blocks: in_proj, out_proj": r"blocks\.\d+\.mixer\.(in|out)_proj",
    "blocks: convolution": r"blocks\.\d+\.mixer\.(cross_)?conv",
    "blocks: scan": r"blocks\.\d+\.mixer\.(A_log|D$|dt_proj_bias|cross_scan)",
    "blocks: x_proj, dt_proj": r"blocks\.\d+\.mixer\.(?!out_norm)",
    "blocks: mlp": r"blocks\.\d+\.mlp\.",
    "blocks: norms": r"blocks\.\d+\.",
}
UNCOUNTED = {  # part -> what the table says instead of FLOPs, and why
    "roi_head": ("not counted", "whose cost depends on the number of boxes"),
    "auxiliary_head": ("training only", "which is used in training only"),
    "momentum_encoder": ("training only", "which is used in training only"),
}
MULTIPLY_ADD = "A multiply-add counts as two operations; norms, activations and gates are not counted."
SCAN = (
    "The scan counts as 7 N + 3 operations per token, channel and direction, with N = 16 states, in VMamba one "
    "(arm_backbone.ops.scan.scan_flops)."
)


@dataclass
class Part:
    """The cost of a part of a model.

    Attributes:
        parameters: number of weights.
        flops: operations of one forward.
    """

    parameters: int = 0
    flops: int = 0


class _Forward(nn.Module):
    """The forward of a model. Of a two-stage detector: backbone, neck and RPN head, whose cost the image size fixes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> None:
        if hasattr(self.model, "roi_head"):
            for level in self.model.extract_feat(images):
                self.model.rpn_head.forward_single(level)  # its own forward uses autocast, which does not support meta
        else:
            self.model(images)


def count(model: nn.Module, size: tuple[int, int], in_chans: int = 3) -> dict[str, Part]:
    """Parameters and FLOPs of every part of a model for one image.

    The trunk of ARM, Vim or VMamba is split into `TRUNK_PARTS`; other parts are the first two module names, without
    indices.

    Args:
        model: on the meta device.
        size: (height, width) of the image in pixels.

    Raises:
        ConfigError: if ARM_SCAN_BACKEND is "reference", which is not a registered operator.
    """
    if resolve_backend(torch.device("meta"), torch.float32) == "reference":
        raise ConfigError("ARM_SCAN_BACKEND=reference: its FLOPs cannot be counted; unset it")
    trunk = _find_trunk(model)
    parts = {} if trunk is None else {trunk + part: Part() for part in TRUNK_PARTS}
    batch = getattr(model, "images_per_sequence", 1)  # STAR reads several images as one sequence
    for name, parameter in model.named_parameters():
        parts.setdefault(part_of(name, trunk), Part()).parameters += parameter.numel()
    forward = _Forward(model).eval().requires_grad_(False)
    # SDPBackend.MATH: attention as matrix products, which are counted on every device
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(torch.empty(batch, in_chans, *size))
    for name, flops in _own_flops(counter.get_flop_counts()).items():
        parts.setdefault(part_of(name, trunk), Part()).flops += flops // batch
    return {name: part for name, part in parts.items() if part != Part()}


def _find_trunk(model: nn.Module) -> str | None:
    """The prefix of the parameters of a model's first trunk of ARM, Vim or VMamba; None without one."""
    for name, module in model.named_modules():
        if isinstance(module, ARMTrunk | VMambaTrunk):
            return f"{name}." if name else ""
    return None


def _own_flops(counts: dict[str, dict]) -> dict[str, int]:
    """FLOPs by "module.operator", without those of a module's children.

    Args:
        counts: module name (starting with "_Forward") -> operator -> FLOPs, including those of the children.
    """
    own: Counter = Counter()
    for module, operators in counts.items():
        ancestors = [".".join(module.split(".")[:n]) for n in range(module.count("."), 0, -1)]
        parent = next((name for name in ancestors if name in counts), None)
        for operator, flops in operators.items():
            own[module, operator] += flops
            own[parent, operator] -= flops
    return {
        f"{module}.{operator.__name__}".removeprefix("_Forward.").removeprefix("model."): flops
        for (module, operator), flops in own.items()
        if flops and module not in (None, "Global")
    }


def part_of(name: str, trunk: str | None) -> str:
    """The part that a parameter, or an operator ("module.operator"), belongs to.

    Args:
        trunk: from `_find_trunk`.
    """
    if trunk is not None and name.startswith(trunk):
        within = re.sub(r"^stages\.\d+\.", "", name.removeprefix(trunk))
        for part, beginning in TRUNK_PARTS.items():
            if re.match(beginning, within):
                return trunk + part
    *modules, last = [word for word in name.split(".") if not word.isdigit()]
    return ".".join(modules[:2]) or last


def from_name(name: str, size: tuple[int, int] | None = None) -> tuple[nn.Module, tuple[int, int, int]]:
    """Build a model of timm's registry on the meta device, for images of `size`; also returns its input's (C, H, W).

    Args:
        size: (height, width) in pixels; the model's default if None.

    Raises:
        ConfigError: for an unknown name.
    """
    if not timm.is_model(name):
        names = timm.list_models()
        close = [n for n in names if n.startswith(name)][:3] or difflib.get_close_matches(name, names, 3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise ConfigError(f"{name} is neither a model name nor a configuration (.py); {hint}")
    overlay = dict(input_size=(3, *size)) if size else None
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained_cfg_overlay=overlay)
    except NotImplementedError:  # some constructors compute with tensors, e.g. RegNets of older timm
        model = timm.create_model(name, pretrained_cfg_overlay=overlay).to("meta")
    return model, tuple(model.pretrained_cfg["input_size"])


def from_config(path: str, size: tuple[int, int] | None = None) -> tuple[nn.Module, tuple[int, int, int]]:
    """Build the model of a configuration on the meta device; also returns its input's (C, H, W).

    Args:
        size: (height, width) in pixels. If None: the model's own for classification and pretraining, the training crop
            of a segmentor, `DET_SIZE` for a detector.

    Raises:
        ConfigError: if the configuration has no model, or it cannot be built.
    """
    cfg = load_config(path)
    is_dense = "backbone" in cfg.model
    scope = cfg.get("default_scope", "mmengine")
    with DefaultScope.overwrite_default_scope(scope), torch.device("meta"), config_errors(cfg, path):
        model = MODELS.build(cfg.model)
        if size and not is_dense and _has_size(model):
            cfg.model.img_size = size
            model = MODELS.build(cfg.model)
    if size is None and not is_dense:
        size = image_size(model)
    elif size is None and scope == "mmseg":
        size = (cfg.model.get("data_preprocessor") or {}).get("size") or SEG_SIZE
    return model, (3, *(size or DET_SIZE))


def _has_size(model: nn.Module) -> bool:
    """Whether a pretraining model or a classifier is made for images of one size; VMamba and RegNets take any."""
    encoder = getattr(model, "encoder", model)
    return hasattr(encoder, "img_size") or hasattr(getattr(encoder, "model", None), "patch_embed")


def image_size(model: nn.Module) -> tuple[int, int]:
    """(height, width) of the images that a pretraining model or a classifier is made for.

    `CLS_SIZE` for a model without a size, which takes any (VMamba).
    """
    encoder = getattr(model, "encoder", model)
    if hasattr(encoder, "img_size"):
        return encoder.img_size
    from_timm = getattr(encoder, "model", None)
    return timm.data.resolve_model_data_config(from_timm)["input_size"][1:] if from_timm is not None else CLS_SIZE


def describe(name: str, size: tuple[int, int] | None = None) -> str:
    """A Markdown table of a model's parts, followed by notes on what is counted.

    Args:
        name: in timm's registry, or the path of a configuration.
        size: (height, width) in pixels, see `from_name` and `from_config`.

    Raises:
        ConfigError: if there is no such model, or if it does not accept images of this size.
    """
    make = from_config if Path(name).suffix == ".py" else from_name
    try:
        model, (channels, *size) = make(name, size)
        parts = count(model, tuple(size), channels)
    except ConfigError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        where = f" on images of {size[0]} x {size[1]} pixels" if size else ""
        raise ConfigError(f"{name} cannot be counted{where}: {one_line(error)}") from error
    notes = [MULTIPLY_ADD]
    if _find_trunk(model) is not None:
        notes.append(SCAN)
    uncounted = {key: value for key, value in UNCOUNTED.items() if hasattr(model, key)}
    if uncounted:
        without = ", ".join(f"{part}, {why}" for part, (_, why) in uncounted.items())
        notes.append(f"The total GFLOPs exclude {without}.")
    rows = []
    for part, numbers in parts.items():
        label = uncounted.get(part.split(".")[0], (f"{numbers.flops / 1e9:.3f}",))[0]
        rows.append((part, f"{numbers.parameters / 1e6:.3f}", label))
    total = Part(sum(p.parameters for p in parts.values()), sum(p.flops for p in parts.values()))
    rows.append(("total", f"{total.parameters / 1e6:.3f}", f"{total.flops / 1e9:.3f}"))
    table = markdown_table(("part", "parameters (M)", "GFLOPs"), rows, "lrr")
    title = f"{name}, one image of {size[0]} x {size[1]} pixels (height x width)"
    return "\n".join([title, "", table, "", *notes])
