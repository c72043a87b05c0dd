"""Converts a checkpoint of any kind into any other kind that its tensors allow, and accounts for every tensor.

The keys of a checkpoint show its kind: "pretrain" (autoregressive), "mae", "moco", "backbone", "classifier" and
"dense" (a detector or segmentor) come from this toolkit, "official-pretrain" and "official-finetune" from the authors'
code. They also show its encoder, ARM, Vim or VMamba; `vmamba.py` converts what is of VMamba.
"""

import re
from collections.abc import Iterable

import torch
from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor

from ..arm import trunk_class
from ..pos_embed import resize_pos_embed
from .accounting import Accounting, describe_mismatch, describe_values, shorten
from .errors import CheckpointError, in_one_line
from .official import (
    encoder_of,
    from_official,
    is_official,
    is_official_pretrain,
    parameter_names,
    to_official,
)
from .vmamba import VMAMBA_SIZE, convert_vmamba, vmamba_kind
from .vmamba_official import is_vmamba

TARGETS = ("backbone", "classifier", "pretrain", "official-pretrain", "official-finetune")
PER_DIRECTION = ("conv_weight", "conv_bias", "x_proj_weight", "dt_proj_weight", "dt_proj_bias", "A_log", "D")
_DIRECTION_NAME = re.compile(rf"blocks\.\d+\.mixer\.({'|'.join(PER_DIRECTION)})")
_TRUNK_NAME = re.compile(
    rf"patch_embed\.proj\.(weight|bias)|pos_embed|cls_token|cls_pos_embed|{_DIRECTION_NAME.pattern}"
    r"|blocks\.\d+\.mixer\.(in|out)_proj\.weight"
)
_BLOCK_NAME = {  # of tensors outside of the mixer
    "ARM": re.compile(r"blocks\.\d+\.(norm[12]|mlp\.w[123])\.(weight|bias)"),
    "Vim": re.compile(r"blocks\.\d+\.norm\.weight"),
}
_DIMENSIONS = {  # end of a trunk name -> number of dimensions; all others are vectors
    r"patch_embed\.proj\.weight|pos_embed": 4,
    r"cls_token|cls_pos_embed|conv_weight|x_proj_weight|dt_proj_weight|A_log": 3,
    r"conv_bias|dt_proj_bias|D|(in_proj|out_proj|w[123])\.weight": 2,
}
_PREFIX = {  # of the trunk's keys
    "pretrain": "encoder.",
    "mae": "encoder.",
    "moco": "base_encoder.",
    "dense": "backbone.",
    "classifier": "",
    "backbone": "",
}
# norms outside of the trunk that finetuned models have, too
_OF_FINETUNING = {"backbone": "out_norms.", "dense": "out_norms.", "moco": "norm."}
_REST = {  # prefixes of the keys outside the trunk, and what they hold
    "pretrain": (("decoder.", "mask_token", "decoder_pos_embed", "separator"), "belongs to pretraining only"),
    "mae": (("decoder.", "mask_token"), "belongs to pretraining only"),
    "moco": (("base_encoder.", "momentum_encoder.", "predictor."), "belongs to pretraining only"),
    "dense": (("",), "belongs to the neck or the heads"),
    "classifier": (("norm.", "head.", "attn_pool."), "belongs to the classification head"),
    "backbone": (("out_norms.",), "belongs to the levels of a backbone"),
}


def detect_kind(state: dict[str, Tensor]) -> str:
    """The kind of a checkpoint (see the module's docstring), recognised by its keys.

    Raises:
        CheckpointError: if the keys are those of no kind.
    """
    probe = "blocks.0.mixer.in_proj.weight"
    if is_vmamba(state):
        return vmamba_kind(state)
    if is_official(state):
        return "official-pretrain" if is_official_pretrain(state) else "official-finetune"
    if f"encoder.{probe}" in state:
        return "mae" if "decoder.norm_tokens.weight" in state else "pretrain"
    if f"base_encoder.{probe}" in state:
        return "moco"
    if f"backbone.{probe}" in state:
        return "dense"
    if probe in state:
        return "classifier" if "norm.weight" in state or "head.weight" in state else "backbone"
    raise CheckpointError(f"no ARM weights: no key ends in {probe}; found {shorten(list(state))}")


class Weights:
    """The tensors of a checkpoint of any kind under our names, split into the trunk and the rest.

    The methods fit the tensors to a model and record what they did.

    Args:
        state: tensors by name.
        cls_token: position of the class token in the authors' classifier, which their files do not record.

    Attributes:
        kind: kind of the file.
        encoder: "ARM" or "Vim".
        family: the corresponding kind of this toolkit ("pretrain" for "official-pretrain").
        trunk: tensors of `ARMTrunk` by its names.
        rest: all other tensors by our names; `rest_is` describes them.
        accounting: what happened to the tensors so far.

    Raises:
        CheckpointError: if the file holds no ARM model, or a tensor with an unknown name.
    """

    def __init__(self, state: dict[str, Tensor], cls_token: str = "middle") -> None:
        self.kind, self.encoder = detect_kind(state), encoder_of(state)
        self.accounting = Accounting()
        self._sources = {key: [key] for key in state}
        how = dict.fromkeys(state, "copied")
        if self.kind.startswith("official"):
            self.family = "pretrain" if self.kind == "official-pretrain" else "classifier"
            try:
                state, renamed = from_official(state, cls_token)
            except (ValueError, RuntimeError, IndexError, TypeError) as error:  # the last three: from wrong shapes
                raise CheckpointError(f"{self.kind} checkpoint: {in_one_line(error)}") from None
            self._sources = {ours: [t for t, o in renamed.items() if o == ours] for ours in state}
            self._sources["cls_pos_embed"] = ["pos_embed"]
            how = {o: "copied" if len(s) == 1 else f"{len(s)} directions stacked" for o, s in self._sources.items()}
            self.accounting.dropped |= {t: "the decoder's constant mask" for t, o in renamed.items() if not o}
        else:
            self.family = self.kind
        prefix, (rest_prefixes, self.rest_is) = _PREFIX[self.family], _REST[self.family]
        self.trunk, self.rest, unknown = {}, {}, []
        for key, tensor in state.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and (_TRUNK_NAME.fullmatch(name) or _BLOCK_NAME[self.encoder].fullmatch(name)):
                self.trunk[name] = tensor
                self._sources[name] = self._sources[key]
                self.accounting.used[name] = how[key]
            elif self.family in _OF_FINETUNING and key.startswith(f"{prefix}{_OF_FINETUNING[self.family]}"):
                self.rest[name] = tensor
                self._sources[name] = self._sources[key]
            elif key.startswith(rest_prefixes):
                self.rest[key] = tensor
            else:
                unknown.append(key)
        if unknown:
            raise CheckpointError(f"{len(unknown)} tensors of a {self.kind} checkpoint are unknown: {shorten(unknown)}")
        for name, tensor in self.trunk.items():
            _check_trunk_tensor(name, tensor)

    def drop(self, name: str, reason: str) -> None:
        """Remove a tensor of the trunk or of the rest, and record the reason."""
        self.trunk.pop(name, None)
        self.rest.pop(name, None)
        self.accounting.used.pop(name, None)
        self.accounting.dropped |= dict.fromkeys(self._sources[name], reason)

    def keep(self, names: list[str]) -> dict[str, Tensor]:
        """Drop all tensors of the rest but these, and return them."""
        for name in [name for name in self.rest if name not in names]:
            self.drop(name, self.rest_is)
        self.accounting.used |= dict.fromkeys(self.rest, "copied")
        return dict(self.rest)

    def fit_scans(self, scans: int) -> None:
        """Copy one scan to `scans` scans.

        Raises:
            CheckpointError: if the file has several scans and the model another number.
        """
        for name, tensor in self.trunk.items():
            if not _DIRECTION_NAME.fullmatch(name) or len(tensor) == scans:
                continue
            if len(tensor) != 1:
                raise CheckpointError(
                    f"{name} has {len(tensor)} scans, the model {scans}; only a single scan can be copied to several"
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
        """Resample the patch embedding's kernel to a patch size in pixels (FlexiViT's pseudo-inverse)."""
        name = "patch_embed.proj.weight"
        kernel = self.trunk.get(name)
        if kernel is not None and kernel.shape[-1] != size:
            self.trunk[name] = resample_patch_embed(kernel, [size, size])
            self.accounting.used[name] = f"resampled from patches of {kernel.shape[-1]} to {size} pixels"

    def fit_in_chans(self, channels: int) -> None:
        """Sum or repeat the patch embedding's kernel to match a number of image channels (timm's rule)."""
        name = "patch_embed.proj.weight"
        kernel = self.trunk.get(name)
        if kernel is not None and kernel.shape[1] != channels:
            self.trunk[name] = adapt_input_conv(channels, kernel)
            self.accounting.used[name] = f"adapted from {kernel.shape[1]} to {channels} channels"

    def add_cls_position(self) -> None:
        """Give a new class token a zero position embedding, as the reference code does."""
        table = self.trunk.get("pos_embed")
        if table is not None and "cls_pos_embed" not in self.trunk:
            self.trunk["cls_pos_embed"] = torch.zeros_like(table[:, 0, :1])
            self.accounting.used["cls_pos_embed"] = "zero (position of a new class token)"


def _check_trunk_tensor(name: str, tensor: Tensor) -> None:
    """Check what holds for the tensor in an ARM model of any size: floating point, dimensions, not empty."""
    if not tensor.is_floating_point():
        raise CheckpointError(f"{name} is {tensor.dtype}; weights are floating-point numbers")
    last = name.split("blocks.")[-1]
    dimensions = next((count for names, count in _DIMENSIONS.items() if re.search(rf"(^|\.)({names})$", last)), 1)
    if tensor.ndim != dimensions or not tensor.numel():
        raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}; expected {dimensions} dimensions, none empty")


def convert(
    state: dict[str, Tensor],
    target: str,
    grid: tuple[int, int] | None = None,
    patch_size: int | None = None,
    cls_token: str | None = "middle",
) -> tuple[dict[str, Tensor], Accounting]:
    """Convert a checkpoint of any kind into another kind.

    Args:
        state: tensors by name.
        target: one of `TARGETS`.
        grid: (Gh, Gw) to resize the position embedding to; None keeps its size.
        patch_size: pixels to resample the patch embedding to; None keeps its size.
        cls_token: position of the class token in the authors' classifiers, "middle" or "tail"; None: the target has
            no class token.

    Returns:
        the tensors of the target, and the accounting.

    Raises:
        CheckpointError: if the file lacks what the target needs, or a tensor has an unknown name or a wrong shape.
    """
    if is_vmamba(state):
        if grid or patch_size:
            raise CheckpointError(VMAMBA_SIZE)
        return convert_vmamba(state, target)
    weights = Weights(state, cls_token or "middle")
    pretraining = target in ("pretrain", "official-pretrain")
    if pretraining and weights.family != "pretrain":
        raise CheckpointError(f"a {weights.kind} checkpoint has no pretraining decoder; --to {target} needs one")
    if pretraining and (grid or patch_size):
        raise CheckpointError(
            f"--to {target}: the decoder needs its own image and patch size; omit --img-size and --patch-size"
        )
    weights.fit_scans(1 if pretraining else trunk_class(weights.encoder).most_scans)
    if grid:
        weights.fit_grid(grid)
    if patch_size:
        weights.fit_patch_size(patch_size)
    classifier = target in ("classifier", "official-finetune")
    if cls_token is None:
        for name in ("cls_token", "cls_pos_embed"):
            if name in weights.trunk:
                weights.drop(name, "the target has no class token")
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
        raise CheckpointError(f"--to {target} needs a class token; give --cls-token middle or tail")
    try:
        result, renamed = to_official(result, cls_token or "middle")
    except ValueError as error:
        raise CheckpointError(f"--to {target}: {error}") from None
    used = weights.accounting.used
    weights.accounting.used = {theirs: used.get(ours, "computed from the grid") for theirs, ours in renamed.items()}
    return result, weights.accounting


def arch_of(state: dict[str, Tensor]) -> dict:
    """Arguments of the encoder's trunk that match the weights of a checkpoint of any kind.

    Weights do not record the patch stride, which is assumed to be the patch size, nor the position of a class token,
    which is assumed to be the middle.

    Returns:
        dict with arch, img_size, patch_size, patch_stride, scans, cls_token and in_chans.

    Raises:
        CheckpointError: if the weights are not those of such a model, contain an unknown name, or are not complete.
    """
    if is_vmamba(state):
        raise CheckpointError(VMAMBA_SIZE)
    weights = Weights(state)
    trunk = weights.trunk
    for name in ("pos_embed", "patch_embed.proj.weight", "blocks.0.mixer.D"):
        if name not in trunk:
            raise CheckpointError(f"the checkpoint is not complete: no {name}")
    _, height, width, dim = trunk["pos_embed"].shape
    _, in_chans, _, patch = trunk["patch_embed.proj.weight"].shape
    arguments = dict(
        arch=dict(embed_dims=dim, num_layers=_count_blocks(trunk, "blocks.")),
        img_size=(height * patch, width * patch),
        patch_size=patch,
        patch_stride=patch,
        scans=len(trunk["blocks.0.mixer.D"]),
        cls_token="middle" if "cls_token" in trunk else None,
        in_chans=in_chans,
    )
    try:
        with torch.device("meta"):
            trunk_class(weights.encoder)(**arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"no {weights.encoder} has these shapes: {in_one_line(error)}") from None
    return arguments


def _count_blocks(names: Iterable[str], prefix: str) -> int:
    """The number of blocks in names of the form PREFIX0.*, PREFIX1.*, ...; 0 if there are none.

    Raises:
        CheckpointError: if one is missing.
    """
    blocks = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    missing = [i for i in range(len(blocks)) if str(i) not in blocks]
    if missing:
        raise CheckpointError(f"the checkpoint is not complete: no {prefix}{missing[0]}")
    return len(blocks)


def _require_complete(weights: Weights, family: str) -> None:
    """Check that the trunk, and the decoder of a pretraining checkpoint, have every tensor in the right shape."""
    trunk = weights.trunk
    cls_token = "middle" if "cls_pos_embed" in trunk else None  # the token itself is learned in finetuning
    with torch.device("meta"):
        model = trunk_class(weights.encoder)(**arch_of(trunk) | dict(cls_token=cls_token))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name != "cls_token"}
    problem = describe_mismatch(expected, {name: t.shape for name, t in trunk.items() if name != "cls_token"})
    if family == "pretrain":
        depth = _count_blocks(weights.rest, "decoder.blocks.")
        wanted = {ours for _, ours, _ in parameter_names(0, depth) if not ours.startswith("encoder.")}
        problem = problem or describe_mismatch(dict.fromkeys(wanted), dict.fromkeys(weights.rest))
    if problem:
        raise CheckpointError(f"the {weights.kind} checkpoint is not complete: {problem}")
    kept = weights.trunk | weights.rest
    problem = describe_values(dict.fromkeys(kept, torch.empty(0)), kept)
    if problem:
        raise CheckpointError(f"{problem}; convert an earlier checkpoint")
