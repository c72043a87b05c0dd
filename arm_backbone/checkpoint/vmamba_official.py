"""Translates the checkpoints of VMamba's authors to our names and shapes and back, with one table for both ways.

Their files differ from ours: A and D of the four directions are one matrix and one vector (ours have a leading
dimension K, like the other parameters of a direction), and the layers of stem and downsampling are numbered.

Legend: K = 4 directions, D channels, N state size.
"""

import re
from collections.abc import Iterable, Iterator

from torch import Tensor

STAGES, DIRECTIONS = 4, 4  # of every model

# modules with weight and bias; theirs: ours
_STEM = {"patch_embed.0": "stem.0.conv", "patch_embed.2": "stem.0.norm"}
_STEM |= {"patch_embed.5": "stem.2.conv", "patch_embed.7": "stem.2.norm"}
_BLOCK = {
    "norm": "norm1",
    "op.out_norm": "mixer.out_norm",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_DOWNSAMPLE = {"downsample.1": "downsample.conv", "downsample.3": "downsample.norm"}
_CLASSIFIER = {"classifier.norm": "norm", "classifier.head": "head"}
# tensors
_MIXER = {
    "x_proj_weight": "x_proj_weight",
    "A_logs": "A_log",
    "Ds": "D",
    "dt_projs_weight": "dt_proj_weight",
    "dt_projs_bias": "dt_proj_bias",
    "in_proj.weight": "in_proj.weight",
    "conv2d.weight": "conv.weight",
    "out_proj.weight": "out_proj.weight",
}
# names in older files: the present ones
_OLDER = {
    r"^patch_embed\.proj\.": "patch_embed.0.",
    r"^patch_embed\.norm\.": "patch_embed.2.",
    r"\.ln_1\.": ".norm.",
    r"\.self_attention\.": ".op.",
    r"^(norm|head)\.": r"classifier.\1.",
}


PROBE = "stages.0.blocks.0.mixer.in_proj.weight"  # a name of ours that every file has


def is_vmamba(state: dict[str, Tensor]) -> bool:
    """Whether the tensors are those of VMamba, under the authors' names or ours."""
    return is_official(state) or PROBE in state or f"backbone.{PROBE}" in state


def is_official(state: dict[str, Tensor]) -> bool:
    """Whether the tensors have the names of VMamba's authors, present or older ones."""
    return any(f"layers.0.blocks.0.{mixer}.in_proj.weight" in state for mixer in ("op", "self_attention"))


def parameter_names(depths: list[int]) -> Iterator[tuple[str, str]]:
    """(their name, our name) of every tensor of a classifier with these numbers of blocks."""

    def both(modules: dict[str, str], theirs: str = "", ours: str = "") -> Iterator[tuple[str, str]]:
        for their_module, our_module in modules.items():
            for part in ("weight", "bias"):
                yield f"{theirs}{their_module}.{part}", f"{ours}{our_module}.{part}"

    yield from both(_STEM)
    for i, depth in enumerate(depths):
        for j in range(depth):
            theirs, ours = f"layers.{i}.blocks.{j}.", f"stages.{i}.blocks.{j}."
            yield from both(_BLOCK, theirs, ours)
            yield from ((f"{theirs}op.{their_name}", f"{ours}mixer.{name}") for their_name, name in _MIXER.items())
        if i + 1 < STAGES:
            yield from both(_DOWNSAMPLE, f"layers.{i}.", f"stages.{i}.")
    yield from both(_CLASSIFIER)


def count_blocks(names: Iterable[str], pattern: str) -> list[int]:
    """Number of blocks of each stage, up to the first missing one.

    Args:
        names: of tensors.
        pattern: of their beginnings, with groups for stage and block.
    """
    found = {tuple(map(int, match.groups())) for name in names if (match := re.match(pattern, name))}
    depths: list[int] = []
    while (len(depths), 0) in found:
        depths.append(next(j for j in range(1, len(found) + 1) if (len(depths), j) not in found))
    return depths


def from_official(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename and reshape the authors' tensors to ours; linear weights may have the form (out, in, 1, 1).

    Returns:
        our tensors, and {their name: our name} for each tensor of the file.

    Raises:
        ValueError: for an unknown name, or a name twice, as a present and as an older one.
    """
    present = {}
    for name in state:
        new = name
        for pattern, replacement in _OLDER.items():
            new = re.sub(pattern, replacement, new)
        if new in present:
            raise ValueError(f"{name} and {present[new]} are the same tensor; use a file with one of them")
        present[new] = name
    table = dict(parameter_names(count_blocks(present, r"layers\.(\d+)\.blocks\.(\d+)\.")))
    unknown = [name for new, name in present.items() if new not in table]
    if unknown:
        raise ValueError(f"unknown tensors: {', '.join(unknown[:5])}")
    renamed = {name: table[new] for new, name in present.items()}
    return {ours: _to_ours(ours, state[theirs]) for theirs, ours in renamed.items()}, renamed


def _to_ours(ours: str, tensor: Tensor) -> Tensor:
    if ours.endswith((".A_log", ".D")) and tensor.ndim and not len(tensor) % DIRECTIONS:
        return tensor.unflatten(0, (DIRECTIONS, -1))
    if tensor.shape[2:] == (1, 1) and not ours.endswith("conv.weight"):
        return tensor.flatten(1)
    return tensor


def to_official(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename and reshape the tensors of our classifier to the authors'.

    Returns:
        their tensors, and {their name: our name} for each of them.

    Raises:
        ValueError: for a tensor without a name in their format.
    """
    table = {ours: theirs for theirs, ours in parameter_names(count_blocks(state, r"stages\.(\d+)\.blocks\.(\d+)\."))}
    unknown = [name for name in state if name not in table]
    if unknown:
        raise ValueError(f"the authors' format has no name for {', '.join(unknown[:5])}")
    flat = {n: t.flatten(0, 1) if n.endswith((".A_log", ".D")) else t for n, t in state.items()}
    return {table[name]: tensor for name, tensor in flat.items()}, {table[name]: name for name in state}
