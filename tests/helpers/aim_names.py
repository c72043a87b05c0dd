"""The names of AIM's files, to make files of its authors from models of ours."""

import re

from torch import Tensor


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors under the names of AIM's files."""
    theirs = {}
    for name, tensor in state.items():
        name = re.sub(r"^(blocks\.\d+\.norm)(\d)", r"\1_\2", name)
        for ours, prefix in (("patch_embed", "preprocessor.patchifier"), ("norm", "trunk.post_trunk_norm")):
            name = re.sub(rf"^{ours}\.", f"{prefix}.", name)
        theirs[re.sub(r"^blocks\.", "trunk.blocks.", name)] = tensor
    return theirs
