"""Parameters and FLOPs of a model, part by part: of a timm name or of a configuration.

Models are built and run on the meta device: no memory, no arithmetic, no weights.
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

from ..engine.checks import config_errors
from ..engine.config import load_config
from ..errors import ConfigError, one_line

DET_SIZE, SEG_SIZE = (800, 1280), (512, 512)

# Parts of an ARM trunk, told by the beginning of a parameter's name, or of an operator's name after its module's
TRUNK_PARTS = {
    "patch_embed": r"patch_embed\.",
    "position and class token": r"pos_embed|cls_token|cls_pos_embed",
    "blocks: in_proj, out_proj": r"blocks\.\d+\.mixer\.(in|out)_proj",
    "blocks: convolution": r"blocks\.\d+\.mixer\.(conv_|cross_conv)",
    "blocks: scan": r"blocks\.\d+\.mixer\.(A_log|D$|dt_proj_bias|cross_scan)",
    "blocks: x_proj, dt_proj": r"blocks\.\d+\.mixer\.",
    "blocks: mlp": r"blocks\.\d+\.mlp\.",
    "blocks: norms": r"blocks\.\d+\.norm",
}
UNCOUNTED = {  # part -> what the table says instead of a number, and why
    "roi_head": ("not counted", "which works on as many boxes as an image has"),
    "auxiliary_head": ("training only", "which training alone needs"),
}
MULTIPLY_ADD = "A multiply-add counts as two operations; norms, activations and gates are not counted."
SCAN = (
    "The scan counts as 7 N + 3 operations per token, channel and direction, with N = 16 states "
    "(arm_backbone.ops.scan.scan_flops)."
)


@dataclass
class Part:
    """Parameters of a part of a model, and operations of one forward."""

    parameters: int = 0
    flops: int = 0


class _Forward(nn.Module):
    """A model's forward, of a two-stage detector as far as it does not depend on what is in the image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> None:
        if hasattr(self.model, "roi_head"):
            for level in self.model.extract_feat(images):
                self.model.rpn_head.forward_single(level)  # forward asks for autocast, which meta has not
        else:
            self.model(images)


def count(model: nn.Module, size: tuple[int, int], in_chans: int = 3) -> dict[str, Part]:
    """Parameters, and FLOPs for one image of `size` (height, width), of every part of a model on the meta device.

    An ARM trunk is split as in `TRUNK_PARTS`, all else by the first two names of modules, numbers left out.

    Raises:
        ConfigError: if ARM_SCAN_BACKEND chooses the reference, which is no registered operator.
    """
    if resolve_backend(torch.device("meta"), torch.float32) == "reference":
        raise ConfigError("ARM_SCAN_BACKEND=reference: its operations cannot be counted; unset it")
    trunk = trunk_prefix(model)
    parts = {} if trunk is None else {trunk + part: Part() for part in TRUNK_PARTS}
    batch = getattr(model, "images_per_sequence", 1)  # STAR reads several images as one sequence
    for name, parameter in model.named_parameters():
        parts.setdefault(part_of(name, trunk), Part()).parameters += parameter.numel()
    forward = _Forward(model).eval().requires_grad_(False)
    # as matrix products, attention is counted on every device
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(torch.empty(batch, in_chans, *size))
    for name, flops in _own_flops(counter.get_flop_counts()).items():
        parts.setdefault(part_of(name, trunk), Part()).flops += flops // batch
    return parts


def _own_flops(counts: dict[str, dict]) -> dict[str, int]:
    """FLOPs by "module.operator", those of a module's children not counted again.

    Args:
        counts: by name of a module, which begins with "_Forward", and operator.
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


def trunk_prefix(model: nn.Module) -> str | None:
    """What the names of the model's ARM trunk begin with; None without one."""
    for name, module in model.named_modules():
        if isinstance(module, ARMTrunk):
            return f"{name}." if name else ""
    return None


def part_of(name: str, trunk: str | None) -> str:
    """The part that a parameter or an operator in a module belongs to."""
    if trunk is not None and name.startswith(trunk):
        for part, beginning in TRUNK_PARTS.items():
            if re.match(beginning, name.removeprefix(trunk)):
                return trunk + part
    *modules, last = [word for word in name.split(".") if not word.isdigit()]
    return ".".join(modules[:2]) or last


def from_name(name: str, size: tuple[int, int] | None = None) -> tuple[nn.Module, tuple[int, int, int]]:
    """A model of timm's registry on the meta device, made for images of `size`, and its input's (C, H, W).

    Raises:
        ConfigError: for an unknown name.
    """
    if not timm.is_model(name):
        names = timm.list_models()
        close = [n for n in names if n.startswith(name)][:3] or difflib.get_close_matches(name, names, 3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise ConfigError(f"{name} is neither a model's name nor a configuration (.py); {hint}")
    overlay = dict(input_size=(3, *size)) if size else None
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained_cfg_overlay=overlay)
    except NotImplementedError:  # some compute their widths with tensors, as older timm's RegNets
        model = timm.create_model(name, pretrained_cfg_overlay=overlay).to("meta")
    return model, tuple(model.pretrained_cfg["input_size"])


def from_config(path: str, size: tuple[int, int] | None = None) -> tuple[nn.Module, tuple[int, int, int]]:
    """The model of a configuration on the meta device, and its input's (C, H, W).

    Without `size`: what a classifier or pretraining model is made for, the training crop of a segmentor, `DET_SIZE` for
    a detector.

    Raises:
        ConfigError: for a configuration that cannot be built.
    """
    cfg = load_config(path)
    if not cfg.get("model"):
        raise ConfigError(f"{path} has no model; give a configuration that can be trained")
    is_dense = "backbone" in cfg.model
    if size and not is_dense:
        cfg.model.img_size = size
    scope = cfg.get("default_scope", "mmengine")
    with DefaultScope.overwrite_default_scope(scope), torch.device("meta"), config_errors(cfg, path):
        model = MODELS.build(cfg.model)
    if size is None and not is_dense:
        size = getattr(model, "encoder", model).img_size
    elif size is None and scope == "mmseg":
        size = (cfg.model.get("data_preprocessor") or {}).get("size") or SEG_SIZE
    return model, (3, *(size or DET_SIZE))


def describe(name: str, size: tuple[int, int] | None = None) -> str:
    """The table of a timm name or configuration file, as markdown.

    Raises:
        ConfigError: if there is no such model, or it does not take images of this size.
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
    if trunk_prefix(model) is not None:
        notes.append(SCAN)
    uncounted = {key: value for key, value in UNCOUNTED.items() if hasattr(model, key)}
    if uncounted:
        without = ", ".join(f"{part}, {why}" for part, (_, why) in uncounted.items())
        notes.append(f"The total of GFLOPs is without {without}.")
    lines = [f"{name}, one image of {size[0]} x {size[1]} pixels (height x width)", ""]
    lines += ["| part | parameters (M) | GFLOPs |", "| --- | ---: | ---: |"]
    for part, numbers in parts.items():
        label = uncounted.get(part.split(".")[0], (f"{numbers.flops / 1e9:.3f}",))[0]
        lines.append(f"| {part} | {numbers.parameters / 1e6:.3f} | {label} |")
    total = Part(sum(p.parameters for p in parts.values()), sum(p.flops for p in parts.values()))
    lines.append(f"| total | {total.parameters / 1e6:.3f} | {total.flops / 1e9:.3f} |")
    return "\n".join([*lines, "", *notes])
