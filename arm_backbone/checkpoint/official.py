"""Translates the checkpoints of ARM's and Vim's authors to our names and shapes and back, with one table for both ways.

Their files differ from ours: blocks are called `layers`; each direction has its own tensors, with a suffix (ours have a
leading dimension K); the position embedding is a sequence that includes the class token (ours is a grid); and
pretraining files hold a constant mask.

Legend: K scan directions, D channels, W taps, C width, M patches, Gh, Gw grid.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..scan_order import cls_index
from .vmamba_official import is_vmamba

SUFFIXES = ("", "_b", "_c", "_c_b")  # row-forward, row-backward, column-forward, column-backward; Vim has two
CLUSTER_PATCHES = 16  # patches per cluster; the authors' code has one size, 4 x 4

# {} stands for the direction's suffix
_MIXER = {
    "conv1d{}.weight": "conv_weight",
    "conv1d{}.bias": "conv_bias",
    "x_proj{}.weight": "x_proj_weight",
    "dt_proj{}.weight": "dt_proj_weight",
    "dt_proj{}.bias": "dt_proj_bias",
    "A{}_log": "A_log",
    "D{}": "D",
}
# modules with weight and bias; theirs: ours
_DECODER = {"enc2dec": "decoder.skip_proj", "ar_norm": "decoder.norm", "ar_pred": "decoder.head"}
_DECODER_BLOCK = {
    "attn2.q": "attention.q",
    "attn2.kv": "attention.kv",
    "attn2.proj": "attention.proj",
    "norm2_1": "norm_query",
    "norm2_2": "norm_tokens",
    "norm2": "norm_mlp",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
_KINDS = ("weight", "bias")
# encoder -> tensors of a block outside of its mixer (theirs and ours); of the norm after the blocks, theirs: ours
_BLOCK = {
    "ARM": [f"{name}.{kind}" for name in ("norm1", "norm2", "mlp.w1", "mlp.w2", "mlp.w3") for kind in _KINDS],
    "Vim": ["norm.weight"],
}
_CLASSIFIER = {
    "ARM": {"norm_f.weight": "norm.weight", "norm_f.bias": "norm.bias"},
    "Vim": {"norm_f.weight": "norm.weight"},
}
_SCANS = {"ARM": 4, "Vim": 2}  # of a classifier


def encoder_of(state: dict[str, Tensor]) -> str:
    """ "VMamba", "Vim" or "ARM", for the tensors of a checkpoint of any kind under the authors' names or ours.

    Vim's blocks have one norm, ARM's have two.
    """
    if is_vmamba(state):
        return "VMamba"
    prefixes = ("layers.", "blocks.", "encoder.blocks.", "base_encoder.blocks.", "backbone.blocks.")
    return "Vim" if any(f"{prefix}0.norm.weight" in state for prefix in prefixes) else "ARM"


def is_official(state: dict[str, Tensor]) -> bool:
    """Whether the tensors have the authors' names."""
    return "layers.0.mixer.in_proj.weight" in state


def is_official_pretrain(state: dict[str, Tensor]) -> bool:
    """Whether the tensors are those of the authors' pretraining model."""
    return is_official(state) and "ar_token" in state


def parameter_names(
    layers: int, decoder_depth: int | None, encoder: str = "ARM"
) -> Iterator[tuple[str, str, int | None]]:
    """(their name, our name, direction or None) of every tensor except `pos_embed` and `mask`.

    Args:
        layers: number of encoder blocks.
        decoder_depth: number of decoder blocks of a pretraining model; None for a classifier (with all scans).
        encoder: "ARM" or "Vim".
    """

    def both(theirs: str, ours: str) -> Iterator[tuple[str, str, None]]:
        yield f"{theirs}.weight", f"{ours}.weight", None
        yield f"{theirs}.bias", f"{ours}.bias", None

    trunk = "" if decoder_depth is None else "encoder."
    suffixes = SUFFIXES[: _SCANS[encoder] if decoder_depth is None else 1]
    yield from both("patch_embed.proj", f"{trunk}patch_embed.proj")
    for i in range(layers):
        theirs, ours = f"layers.{i}", f"{trunk}blocks.{i}"
        for name in (*_BLOCK[encoder], "mixer.in_proj.weight", "mixer.out_proj.weight"):
            yield f"{theirs}.{name}", f"{ours}.{name}", None
        for their_name, our_name in _MIXER.items():
            for k, suffix in enumerate(suffixes):
                yield f"{theirs}.mixer.{their_name.format(suffix)}", f"{ours}.mixer.{our_name}", k
    if decoder_depth is None:
        for theirs, ours in _CLASSIFIER[encoder].items():
            yield theirs, ours, None
        yield from both("head", "head")
        yield "cls_token", "cls_token", None
        return
    for theirs, ours in _DECODER.items():
        yield from both(theirs, ours)
    for i in range(decoder_depth):
        yield from both(f"norm_{i + 1}", f"decoder.skip_norms.{i}")
        for theirs, ours in _DECODER_BLOCK.items():
            yield from both(f"dec_block.{i}.{theirs}", f"decoder.blocks.{i}.{ours}")
    yield "ar_token", "mask_token", None
    yield "dec_pos_embed", "decoder_pos_embed", None


def _count(state: dict[str, Tensor], pattern: str) -> int:
    """The number of tensors named `pattern` with 0, 1, 2, ... filled in, up to the first missing one."""
    count = 0
    while pattern.format(count) in state:
        count += 1
    return count


def from_official(state: dict[str, Tensor], cls_token: str = "middle") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename and reshape the authors' tensors to ours.

    Args:
        cls_token: position of the class token in a classifier's sequence, "middle" or "tail"; files do not record it.

    Returns:
        our tensors, and {their name: our name} for each tensor of the file ("" for the mask, which we drop).

    Raises:
        ValueError: for an unknown name, a missing direction, or a grid that is not square.
    """
    pretrain, encoder = is_official_pretrain(state), encoder_of(state)
    depth = _count(state, "dec_block.{}.attn2.q.weight") if pretrain else None
    scans = 1 if pretrain else _SCANS[encoder]
    result: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    directions: dict[str, list[Tensor]] = {}
    for theirs, ours, direction in parameter_names(_count(state, "layers.{}.mixer.in_proj.weight"), depth, encoder):
        if theirs not in state:
            continue  # conversion, or loading into a model, checks that nothing is missing
        renamed[theirs] = ours
        if direction is None:
            result[ours] = state[theirs]
        else:
            directions.setdefault(ours, []).append(state[theirs])
    for ours, tensors in directions.items():
        if len(tensors) != scans:
            raise ValueError(f"{ours} exists for {len(tensors)} of {scans} directions only; use a complete file")
        stacked = torch.stack(tensors)
        result[ours] = stacked.squeeze(2) if ours.endswith("conv_weight") else stacked  # (K, D, 1, W) -> (K, D, W)
    if "pos_embed" in state:
        result |= _split_position(state["pos_embed"], pretrain, cls_token)
        renamed["pos_embed"] = "encoder.pos_embed" if pretrain else "pos_embed"
    if pretrain and "mask" in state:
        renamed["mask"] = ""
    unknown = [key for key in state if key not in renamed]
    if unknown:
        raise ValueError(f"unknown tensors: {', '.join(unknown[:5])}")
    return result, renamed


def _split_position(table: Tensor, pretrain: bool, cls_token: str) -> dict[str, Tensor]:
    """(1, M, C) -> grid (1, Gh, Gw, C); a classifier's (1, M + 1, C) -> grid and class token (1, 1, C)."""
    result = {}
    if not pretrain:
        position = cls_index(table.shape[1] - 1, cls_token)
        result["cls_pos_embed"] = table[:, position : position + 1]
        table = torch.cat([table[:, :position], table[:, position + 1 :]], dim=1)
    side = math.isqrt(table.shape[1])
    if side**2 != table.shape[1]:
        raise ValueError(
            f"pos_embed has {table.shape[1]} patches, which is not a square: give a file with a square grid"
        )
    return {"encoder.pos_embed" if pretrain else "pos_embed": table.unflatten(1, (side, side)), **result}


def to_official(state: dict[str, Tensor], cls_token: str = "middle") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename and reshape the tensors of our pretraining model or classifier to the authors'.

    Args:
        cls_token: position of the class token in a classifier's sequence, "middle" or "tail".

    Returns:
        their tensors, and {their name: our name} for each of them ("" for the mask, which is computed).

    Raises:
        ValueError: for a tensor without a name in their format, a wrong number of scans, or a pretraining model of Vim,
            whose authors have none.
    """
    pretrain, encoder = "mask_token" in state, encoder_of(state)
    if pretrain and encoder != "ARM":
        raise ValueError(f"the authors of {encoder} have no format for pretraining; convert to pretrain or backbone")
    scans = 1 if pretrain else _SCANS[encoder]
    trunk = "encoder." if pretrain else ""
    depth = _count(state, "decoder.blocks.{}.norm_mlp.weight") if pretrain else None
    result: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    blocks = _count(state, trunk + "blocks.{}.mixer.in_proj.weight")
    for theirs, ours, direction in parameter_names(blocks, depth, encoder):
        if ours not in state:
            continue
        tensor = state[ours]
        if direction is not None:
            if len(tensor) != scans:
                raise ValueError(f"{ours} has {len(tensor)} scans, but the authors' format has {scans}")
            tensor = tensor[direction].unsqueeze(1) if ours.endswith("conv_weight") else tensor[direction]
        result[theirs], renamed[theirs] = tensor, ours
    table = state[f"{trunk}pos_embed"].flatten(1, 2)
    if not pretrain:
        position = cls_index(table.shape[1], cls_token)
        table = torch.cat([table[:, :position], state["cls_pos_embed"], table[:, position:]], dim=1)
    result["pos_embed"], renamed["pos_embed"] = table, f"{trunk}pos_embed"
    if pretrain:
        result["mask"], renamed["mask"] = cluster_mask(table.shape[1]), ""
    unknown = state.keys() - set(renamed.values()) - {"cls_pos_embed"}
    if unknown:
        raise ValueError(f"the authors' format has no name for {', '.join(sorted(unknown)[:5])}")
    return result, renamed


def cluster_mask(patches: int) -> Tensor:
    """The authors' decoder mask: 0 where a query of cluster a + 1 may attend to a key of cluster b <= a, else -inf."""
    cluster = torch.arange(patches - CLUSTER_PATCHES) // CLUSTER_PATCHES
    return torch.zeros(len(cluster), len(cluster)).masked_fill_(cluster[:, None] < cluster, -torch.inf)
