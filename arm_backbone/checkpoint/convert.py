"""Checkpoint conversion: from any kind to any other that it can become, with an account of every tensor.

Kinds, told by their keys: "pretrain", "backbone", "classifier" and "dense" (a detector or segmenter) of this toolkit,
"official-pretrain" and "official-finetune" of the authors' code.
"""

import re

import torch
from timm.layers import resample_patch_embed
from timm.models._manipulate import adapt_input_conv
from torch import Tensor

from ..arm import ARMTrunk
from ..pos_embed import resize_pos_embed
from .accounting import Accounting, misfit, some
from .files import CheckpointError
from .official import from_official, is_official, is_official_pretrain, names, to_official

TARGETS = ("backbone", "classifier", "pretrain", "official-pretrain", "official-finetune")
PER_DIRECTION = ("conv_weight", "conv_bias", "x_proj_weight", "dt_proj_weight", "dt_proj_bias", "A_log", "D")
_DIRECTION_NAME = re.compile(rf"blocks\.\d+\.mixer\.({'|'.join(PER_DIRECTION)})")
_TRUNK_NAME = re.compile(
    rf"patch_embed\.proj\.(weight|bias)|pos_embed|cls_token|cls_pos_embed|{_DIRECTION_NAME.pattern}"
    r"|blocks\.\d+\.(norm[12]\.(weight|bias)|mixer\.(in|out)_proj\.weight|mlp\.w[123]\.(weight|bias))"
)
_PREFIX = {"pretrain": "encoder.", "dense": "backbone.", "classifier": "", "backbone": ""}  # of the trunk's names
_WITH_LEVELS = ("backbone", "dense")
_REST = {  # how the other names begin, and what they are
    "pretrain": (("decoder.", "mask_token", "decoder_pos_embed", "separator"), "belongs to pretraining alone"),
    "dense": (("",), "belongs to the neck or the heads"),
    "classifier": (("norm.", "head."), "belongs to the classification head"),
    "backbone": (("out_norms.",), "norm of an output level"),
}


def detect_kind(state: dict[str, Tensor]) -> str:
    """The kind of a checkpoint, told by its keys (see the module).

    Raises:
        CheckpointError: if it is none.
    """
    probe = "blocks.0.mixer.in_proj.weight"
    if is_official(state):
        return "official-pretrain" if is_official_pretrain(state) else "official-finetune"
    if f"encoder.{probe}" in state:
        return "pretrain"
    if f"backbone.{probe}" in state:
        return "dense"
    if probe in state:
        return "classifier" if "norm.weight" in state or "head.weight" in state else "backbone"
    raise CheckpointError(f"no ARM weights: no key ends in {probe}; found {some(list(state))}")


class Weights:
    """A checkpoint of any kind, taken apart.

    Args:
        state: tensors by name.
        cls_token: place of the class token in the sequence of an official classifier, whose file does not say it.

    Attributes:
        kind: of the file; `family`: the same, the authors' kinds counted with ours.
        trunk: tensors of `ARMTrunk` by its names.
        rest: all others by our names; `rest_is` says what they are.
        accounting: what became of the tensors so far.

    Raises:
        CheckpointError: for a file without ARM, or with a tensor of an unknown name.
    """

    def __init__(self, state: dict[str, Tensor], cls_token: str = "middle") -> None:
        self.kind = detect_kind(state)
        self.accounting = Accounting()
        self._sources = {key: [key] for key in state}
        how = dict.fromkeys(state, "copied")
        if self.kind.startswith("official"):
            self.family = "pretrain" if self.kind == "official-pretrain" else "classifier"
            try:
                state, became = from_official(state, cls_token)
            except ValueError as error:
                raise CheckpointError(f"{self.kind} checkpoint: {error}") from None
            self._sources = {ours: [t for t, o in became.items() if o == ours] for ours in state}
            self._sources["cls_pos_embed"] = ["pos_embed"]
            how = {o: "copied" if len(s) == 1 else f"{len(s)} directions stacked" for o, s in self._sources.items()}
            self.accounting.dropped |= {t: "the decoder's constant mask" for t, o in became.items() if not o}
        else:
            self.family = self.kind
        prefix, (beginnings, self.rest_is) = _PREFIX[self.family], _REST[self.family]
        self.trunk, self.rest, unknown = {}, {}, []
        for key, tensor in state.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and _TRUNK_NAME.fullmatch(name):
                self.trunk[name] = tensor
                self._sources[name] = self._sources[key]
                self.accounting.used[name] = how[key]
            elif self.family in _WITH_LEVELS and key.startswith(f"{prefix}out_norms."):
                self.rest[name] = tensor
                self._sources[name] = self._sources[key]
            elif key.startswith(beginnings):
                self.rest[key] = tensor
            else:
                unknown.append(key)
        if unknown:
            raise CheckpointError(f"{len(unknown)} tensors of a {self.kind} checkpoint are unknown: {some(unknown)}")

    def drop(self, name: str, reason: str) -> None:
        """Leave out a tensor of the trunk or of the rest."""
        self.trunk.pop(name, None)
        self.rest.pop(name, None)
        self.accounting.used.pop(name, None)
        self.accounting.dropped |= dict.fromkeys(self._sources[name], reason)

    def keep(self, names: list[str]) -> dict[str, Tensor]:
        """These tensors of the rest; the others are dropped."""
        for name in [name for name in self.rest if name not in names]:
            self.drop(name, self.rest_is)
        self.accounting.used |= dict.fromkeys(self.rest, "copied")
        return dict(self.rest)

    def fit_scans(self, scans: int) -> None:
        """One scan becomes `scans` equal ones.

        Raises:
            CheckpointError: if several would have to become fewer.
        """
        for name, tensor in self.trunk.items():
            if not _DIRECTION_NAME.fullmatch(name) or len(tensor) == scans:
                continue
            if len(tensor) != 1:
                raise CheckpointError(
                    f"{name} has {len(tensor)} scans, the model {scans}; only one scan can be copied to several"
                )
            self.trunk[name] = tensor.expand(scans, *tensor.shape[1:]).clone()
            self.accounting.used[name] = f"one scan copied to {scans}"

    def fit_grid(self, grid: tuple[int, int]) -> None:
        """Resize the position embedding to (Gh, Gw)."""
        table = self.trunk.get("pos_embed")
        if table is not None and tuple(table.shape[1:3]) != tuple(grid):
            self.trunk["pos_embed"] = resize_pos_embed(table, *grid)
            size = "x".join(map(str, table.shape[1:3]))
            self.accounting.used["pos_embed"] = f"resized from {size} to {'x'.join(map(str, grid))}"

    def fit_patch_size(self, size: int) -> None:
        """Resample the patch embedding's kernel to another patch size (FlexiViT's pseudo-inverse)."""
        name = "patch_embed.proj.weight"
        kernel = self.trunk.get(name)
        if kernel is not None and kernel.shape[-1] != size:
            self.trunk[name] = resample_patch_embed(kernel, [size, size])
            self.accounting.used[name] = f"resampled from patches of {kernel.shape[-1]} to {size} pixels"

    def fit_in_chans(self, channels: int) -> None:
        """Fold or repeat the patch embedding's kernel for another number of image channels (timm's practice)."""
        name = "patch_embed.proj.weight"
        kernel = self.trunk.get(name)
        if kernel is not None and kernel.shape[1] != channels:
            self.trunk[name] = adapt_input_conv(channels, kernel)
            self.accounting.used[name] = f"adapted from {kernel.shape[1]} to {channels} channels"

    def add_cls_position(self) -> None:
        """A class token that the file does not have starts without a position embedding, as in the reference code."""
        if "cls_pos_embed" not in self.trunk:
            self.trunk["cls_pos_embed"] = torch.zeros_like(self.trunk["pos_embed"][:, 0, :1])
            self.accounting.used["cls_pos_embed"] = "zero (position of a class token that the file does not have)"


def fit(state: dict[str, Tensor], model: ARMTrunk) -> tuple[dict[str, Tensor], Accounting]:
    """The tensors of a checkpoint of any kind that a trunk, backbone or classifier can take, in its shapes.

    One scan is copied to the model's, position embedding and patch size follow the model's. Decoders, heads and norms
    that the model does not have are dropped, a classification head also if it is for other classes.

    Returns:
        tensors by the model's names, and the accounting; what the model has besides is not in them.
    """
    weights = Weights(state, model.cls_token_position or "middle")
    target = model.state_dict()
    weights.fit_scans(model.scans)
    weights.fit_grid(model.grid_size)
    weights.fit_patch_size(model.patch_size)
    weights.fit_in_chans(model.patch_embed.proj.in_channels)
    if "cls_pos_embed" in target:
        weights.add_cls_position()
    result = weights.keep([name for name in weights.rest if name in target])
    for name in ("head.weight", "head.bias"):
        if name in result and len(result[name]) != len(target[name]):
            weights.drop(name, f"for {len(result[name])} classes, the model has {len(target[name])}")
            del result[name]
    return weights.trunk | result, weights.accounting


def convert(
    state: dict[str, Tensor],
    target: str,
    grid: tuple[int, int] | None = None,
    patch_size: int | None = None,
    cls_token: str | None = "middle",
) -> tuple[dict[str, Tensor], Accounting]:
    """Turn a checkpoint of any kind into another.

    Args:
        target: one of `TARGETS`.
        grid: (Gh, Gw) to resize the position embedding to; None leaves it.
        patch_size: pixels to resample the patch embedding to; None leaves it.
        cls_token: place of the class token in the sequence of the authors' classifiers; None drops it, or makes a
            classifier without one.

    Raises:
        CheckpointError: if the file lacks what the target needs, or a tensor is unknown or of another shape.
    """
    weights = Weights(state, cls_token or "middle")
    pretraining = target in ("pretrain", "official-pretrain")
    if pretraining and weights.family != "pretrain":
        raise CheckpointError(f"a {weights.kind} checkpoint has no pretraining decoder; --to {target} needs one")
    if pretraining and (grid or patch_size):
        raise CheckpointError(f"--to {target}: the decoder is made for its own image and patch size; leave them")
    weights.fit_scans(1 if pretraining else 4)
    if grid:
        weights.fit_grid(grid)
    if patch_size:
        weights.fit_patch_size(patch_size)
    classifier = target in ("classifier", "official-finetune")
    if cls_token is None:
        for name in ("cls_token", "cls_pos_embed"):
            if name in weights.trunk:
                weights.drop(name, "no class token wanted")
    elif classifier:
        weights.add_cls_position()
    family = "pretrain" if pretraining else "classifier" if classifier else "backbone"
    rest = weights.keep([name for name in weights.rest if name.startswith(_REST[family][0])])
    _require_complete(weights, family)
    result = {_PREFIX[family] + name: tensor for name, tensor in weights.trunk.items()} | rest
    weights.accounting.used = {
        **{_PREFIX[family] + name: weights.accounting.used[name] for name in weights.trunk},
        **{name: weights.accounting.used[name] for name in rest},
    }
    if not target.startswith("official"):
        return result, weights.accounting
    if classifier and cls_token is None:
        raise CheckpointError(f"--to {target}: the authors' classifier has a class token; give its place")
    try:
        result, came_from = to_official(result, cls_token or "middle")
    except ValueError as error:
        raise CheckpointError(f"--to {target}: {error}") from None
    used = weights.accounting.used
    weights.accounting.used = {theirs: used.get(ours, "made from the sizes") for theirs, ours in came_from.items()}
    return result, weights.accounting


def _require_complete(weights: Weights, family: str) -> None:
    """The trunk has every tensor in its shape, and so has a pretraining decoder."""
    trunk = weights.trunk
    try:
        _, height, width, dim = trunk["pos_embed"].shape
        patch = trunk["patch_embed.proj.weight"].shape[-1]
        with torch.device("meta"):
            model = ARMTrunk(
                dict(
                    embed_dims=dim, num_layers=1 + max(int(n.split(".")[1]) for n in trunk if n.startswith("blocks."))
                ),
                img_size=(height * patch, width * patch),
                patch_size=patch,
                patch_stride=patch,
                scans=len(trunk["blocks.0.mixer.D"]),
                cls_token="middle" if "cls_pos_embed" in trunk else None,
                in_chans=trunk["patch_embed.proj.weight"].shape[1],
            )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"the {weights.kind} checkpoint is not complete: {error}") from None
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    expected.pop("cls_token", None)  # learned in finetuning
    problem = misfit(expected, {name: t.shape for name, t in trunk.items() if name != "cls_token"})
    if family == "pretrain":
        depth = 1 + max((int(n.split(".")[2]) for n in weights.rest if n.startswith("decoder.blocks.")), default=-1)
        wanted = {ours for _, ours, _ in names(0, depth) if not ours.startswith("encoder.")}
        problem = problem or misfit(dict.fromkeys(wanted), dict.fromkeys(weights.rest))
    if problem:
        raise CheckpointError(f"the {weights.kind} checkpoint is not complete: {problem}")
