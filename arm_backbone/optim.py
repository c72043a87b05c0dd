"""Parameter groups (weight-decay exemption by name, layer-wise learning-rate decay) and the learning-rate schedule."""

import math
import re
from collections.abc import Container, Iterable

from torch import Tensor, nn

# By name, not by rank: biases and D have a leading dimension K, so they are matrices.
_DENSE_EXEMPT = re.compile(r"(^|\.)(pos_embed|cls_token|cls_pos_embed|A_log|D|\w*_bias|bias)$")
_REFERENCE_EXEMPT = re.compile(r"(^|\.)(pos_embed|cls_token|cls_pos_embed|D|\w*_bias|bias)$")
_NORM = re.compile(r"(^|\.)(norm\d*|\w*norms\.\d+|\w+_norm)\.(weight|bias)$")
_TIMM_EXEMPT = re.compile(r"(^|\.)bias$")
_EXEMPTIONS = {"dense": _DENSE_EXEMPT, "reference": _REFERENCE_EXEMPT, "timm": _TIMM_EXEMPT}


def is_decayed(name: str, parameter: Tensor, rule: str = "dense") -> bool:
    """Whether weight decay applies to a parameter.

    Args:
        name: dotted name, as in `named_parameters()`.
        parameter: exempt whatever its name if it has at most one dimension (norms of necks and heads).
        rule: "dense" exempts norms, biases, position embedding, class token, A_log and D, as is usual in detection and
            segmentation; "reference" decays A_log, as the authors' code does; "timm" exempts norms and biases of layers
            only, for encoders that name the rest (`no_weight_decay`).

    Raises:
        ValueError: for an unknown rule.
    """
    if rule not in _EXEMPTIONS:
        raise ValueError(f"decay_exempt={rule!r} is unknown; give one of {', '.join(_EXEMPTIONS)}")
    return not (_EXEMPTIONS[rule].search(name) or _NORM.search(name) or parameter.ndim <= 1)


def find_encoder(model: nn.Module) -> tuple[str, nn.Module] | tuple[None, None]:
    """Find the encoder that layer decay and weight-decay exemption ask: ARM, Vim, VMamba or any timm model.

    It has `num_layers`, `layer_depth(name)` (0 for the embeddings, i + 1 for layer i, num_layers + 1 for the rest) and
    `no_weight_decay()` (names), and parameter names that are relative to it.

    Returns:
        the prefix of the encoder's parameter names ("" if the model is the encoder) and the first module with a
        `layer_depth`, or (None, None).
    """
    for name, module in model.named_modules():
        if hasattr(module, "layer_depth"):
            return f"{name}." if name else "", module
    return None, None


def layer_decay_scale(depth: int, num_layers: int, decay: float) -> float:
    """Learning-rate factor at `depth` (0 embeddings, i + 1 block i, num_layers + 1 everything after the blocks)."""
    return decay ** (num_layers + 1 - depth)


def parameter_groups(
    named_parameters: Iterable[tuple[str, Tensor]],
    depth: dict[str, int],
    num_layers: int,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    rule: str = "dense",
    exempt: Container[str] = (),
) -> list[dict]:
    """Group parameters by learning rate and weight decay, for any torch optimizer.

    Args:
        depth: name of a backbone parameter -> its depth; other parameters (neck, heads) have depth num_layers + 1.
        num_layers: number of blocks in the backbone.
        lr, weight_decay: of the optimizer, before layer decay and exemptions.
        layer_decay: factor of the learning rate from one depth to the next lower one; 1.0 for no decay.
        rule: see `is_decayed`.
        exempt: further names without weight decay, as the encoder's `no_weight_decay` gives them.

    Returns:
        dicts with params, param_names, lr, lr_scale and weight_decay; frozen parameters are omitted.

    Raises:
        ValueError: for an unknown rule.
    """
    groups: dict[tuple, dict] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        scale = layer_decay_scale(depth.get(name, num_layers + 1), num_layers, layer_decay)
        decay = weight_decay if is_decayed(name, parameter, rule) and name not in exempt else 0.0
        group = groups.setdefault(
            (scale, decay),
            dict(params=[], param_names=[], lr=lr * scale, lr_scale=scale, weight_decay=decay),
        )
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(groups.values())


def warmup_cosine(time: float, warmup: float, end: float, floor: float = 0.0) -> float:
    """Learning rate as a fraction of its peak: linear warm-up from 0, then half a cosine (reference code, both stages).

    Args:
        time: time since the start of training.
        warmup, end: end of the warm-up and of the schedule, in the same unit as `time` (epochs or iterations).
        floor: final value as a fraction of the peak, so a group with a smaller peak ends at a smaller learning rate.
    """
    if time < warmup:
        return time / warmup
    progress = min((time - warmup) / (end - warmup), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
