"""Conversion and loading of VMamba's weights: classifiers of the authors, and backbones, classifiers and dense models
of this toolkit.
"""

import torch
from timm.models import adapt_input_conv
from torch import Tensor

from ..vmamba import VMamba, VMambaTrunk
from .accounting import Accounting, describe_mismatch, describe_values
from .files import CheckpointError
from .vmamba_official import PROBE, STAGES, count_blocks, from_official, is_official, to_official

VMAMBA_SIZE = (
    "the weights are VMamba's, which has neither patches nor a position embedding: to convert them omit --img-size and "
    "--patch-size; what needs these takes ARM and Vim only"
)
TARGETS = ("backbone", "classifier", "official-finetune")
_BLOCKS = r"stages\.(\d+)\.blocks\.(\d+)\."
_FIRST = "stem.0.conv.weight"
_TRUNK = ("stem.", "stages.")
_HEAD = ("norm.", "head.")
_LEVELS = ("out_norms.",)


def vmamba_kind(state: dict[str, Tensor]) -> str:
    """The kind of a checkpoint of VMamba: "official-finetune", "dense", "classifier" or "backbone"."""
    if is_official(state):
        return "official-finetune"
    if f"backbone.{PROBE}" in state:
        return "dense"
    return "classifier" if any(name.startswith(_HEAD) for name in state) else "backbone"


class _Weights:
    """The tensors of a checkpoint of VMamba under our names.

    Attributes:
        kind: as `vmamba_kind` gives it.
        tensors: of trunk, head and output norms, by our names.
        accounting: what happened to the tensors so far.

    Raises:
        CheckpointError: for an unknown name, or a tensor of another type or without numbers.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.kind, self.accounting = vmamba_kind(state), Accounting()
        self._sources = {name: name for name in state}
        if self.kind == "official-finetune":
            try:
                state, renamed = from_official(state)
            except ValueError as error:
                raise CheckpointError(f"VMamba of the authors: {error}") from None
            self._sources = {ours: theirs for theirs, ours in renamed.items()}
        elif self.kind == "dense":
            others = [name for name in state if not name.startswith("backbone.")]
            self.accounting.dropped |= dict.fromkeys(others, "belongs to the neck or the heads")
            self._sources = {n.removeprefix("backbone."): n for n in state if n.startswith("backbone.")}
            state = {name: state[source] for name, source in self._sources.items()}
        unknown = [self._sources[name] for name in state if not name.startswith((*_TRUNK, *_HEAD, *_LEVELS))]
        if unknown:
            raise CheckpointError(f"unknown tensors of VMamba ({self.kind}): {', '.join(unknown[:5])}")
        self.tensors = dict(state)
        self.accounting.used = dict.fromkeys(state, "copied")

    def drop(self, names: tuple[str, ...], reason: str) -> None:
        """Remove the tensors whose names begin so, and record the reason."""
        for name in [name for name in self.tensors if name.startswith(names)]:
            del self.tensors[name], self.accounting.used[name]
            self.accounting.dropped[self._sources[name]] = reason


def convert_vmamba(state: dict[str, Tensor], target: str) -> tuple[dict[str, Tensor], Accounting]:
    """Convert VMamba's weights; arguments, results and errors are those of `checkpoint.convert.convert`."""
    weights = _Weights(state)
    if target not in TARGETS:
        raise CheckpointError(f"VMamba has no pretraining decoder; --to {target} needs one: give {', '.join(TARGETS)}")
    if target == "backbone":
        weights.drop(_HEAD, "belongs to the classification head")
    else:
        weights.drop(_LEVELS, "belongs to the levels of a backbone")
    tensors = weights.tensors
    _require_complete(tensors, target)
    if target == "official-finetune":
        tensors, renamed = to_official(tensors)
        weights.accounting.used = dict.fromkeys(renamed, "copied")
    return tensors, weights.accounting


def vmamba_arch_of(state: dict[str, Tensor]) -> dict:
    """Arguments of `VMambaTrunk` that match the weights of a checkpoint of any kind: arch and in_chans.

    Raises:
        CheckpointError: if the weights contain an unknown name, or are not complete.
    """
    tensors = _Weights(state).tensors
    depths = count_blocks(tensors, _BLOCKS)
    if len(depths) != STAGES:
        raise CheckpointError(f"the checkpoint is not complete: no stages.{len(depths)}.blocks.0")
    inputs = [f"stages.{i}.blocks.0.mixer.in_proj.weight" for i in range(STAGES)]
    for name, dimensions in ((_FIRST, 4), *((name, 2) for name in inputs)):
        if name not in tensors:
            raise CheckpointError(f"the checkpoint is not complete: no {name}")
        shape = tuple(tensors[name].shape)
        if len(shape) != dimensions or 0 in shape or (dimensions == 2 and shape[0] % shape[1]):
            raise CheckpointError(f"{name} has shape {shape}, which no VMamba has")
    inner, width = tensors[inputs[0]].shape
    widths = tuple(tensors[name].shape[1] for name in inputs)
    arch = dict(widths=widths, depths=tuple(depths), expand=inner // width)
    return dict(arch=arch, in_chans=tensors[_FIRST].shape[1])


def _require_complete(tensors: dict[str, Tensor], target: str) -> None:
    """Check that the trunk has every tensor in the right shape and finite values, and the norms and the head too if
    there are any."""
    arguments = vmamba_arch_of(tensors)
    levels = {tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(_LEVELS)}
    stages = tuple(i for i, width in enumerate(arguments["arch"]["widths"]) if (width,) in levels)
    with torch.device("meta"):
        model = VMamba(**arguments, out_indices=stages) if stages else VMambaTrunk(**arguments)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if target != "backbone" and any(name.startswith(_HEAD) for name in tensors):
        width, classes = model.stages[-1].blocks[0].norm1.weight.shape, tensors.get("head.bias", torch.empty(0)).shape
        expected |= {"norm.weight": width, "norm.bias": width, "head.weight": classes + width, "head.bias": classes}
    problem = describe_mismatch(expected, {name: tensor.shape for name, tensor in tensors.items()})
    if problem:
        raise CheckpointError(f"the checkpoint is not complete for --to {target}: {problem}")
    problem = describe_values(dict.fromkeys(tensors, torch.empty(0)), tensors)
    if problem:
        raise CheckpointError(f"{problem}; convert an earlier checkpoint")


def fit_vmamba(model: VMambaTrunk, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Accounting]:
    """The tensors of a checkpoint by the model's names, without those that it does not have, and the accounting.

    The first convolution is adapted to the model's image channels (timm's rule). A head for another number of classes
    is dropped. What the model needs and the file lacks is for the caller to judge.

    Raises:
        CheckpointError: for an unknown name.
    """
    weights, target = _Weights(state), model.state_dict()
    for names, reason in ((_HEAD, "belongs to the classification head"), (_LEVELS, "belongs to other levels")):
        if not any(name.startswith(names) for name in target):
            weights.drop(names, reason)
    kernel = weights.tensors.get(_FIRST)
    if kernel is not None and kernel.ndim == 4 and kernel.shape[1] != model.in_chans:
        weights.tensors[_FIRST] = adapt_input_conv(model.in_chans, kernel)
        weights.accounting.used[_FIRST] = f"adapted from {kernel.shape[1]} to {model.in_chans} channels"
    head, wanted = weights.tensors.get("head.weight"), target.get("head.weight")
    if head is not None and wanted is None:
        weights.drop(("head.",), "the model has no head")
    elif head is not None and head.ndim and len(head) != len(wanted):
        weights.drop(("head.",), f"for {len(head)} classes, the model has {len(wanted)}")
    return weights.tensors, weights.accounting
