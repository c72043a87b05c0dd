"""Separators: constant or learned tokens between the images or the groups of clusters of a sequence (STAR section 3).

Legend: S tokens of a separator, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

TYPES = ("none", "token", "cluster")
VALUES = ("zeros", "ones", "embedding", "identity")
POSITIONS = ("SC", "CS", "SCS", "CSC")
SEPARATOR = -1  # stands for a separator in a list of cluster steps


@dataclass(frozen=True)
class SeparatorOptions:
    """The argument `separator` of `ARMPretrainer`.

    Attributes:
        type: "none"; "token", a single token; "cluster", as many tokens as a cluster has patches.
        value: the values of these tokens, see `separator_values`.
        position: their position in the sequence, see `image_pattern`.

    Raises:
        ValueError: for an unknown type, value or position.
    """

    type: str = "none"
    value: str = "identity"
    position: str = "SC"

    def __post_init__(self) -> None:
        for name, known in (("type", TYPES), ("value", VALUES), ("position", POSITIONS)):
            given = getattr(self, name)
            if given not in known:
                raise ValueError(f"separator {name} {given!r} is unknown; give one of {', '.join(known)}")


def image_pattern(clusters: int, columns: int, position: str | None) -> list[int]:
    """One image's part of a sequence: the steps of its clusters (from 0), and SEPARATOR for each separator.

    Args:
        clusters: number of clusters.
        columns: clusters per row.
        position: "SC", a separator before the clusters; "CS", after them; "SCS" and "CSC", a separator before or after
            every group of `columns` clusters; None for no separators.
    """
    steps = list(range(clusters))
    if position is None:
        return steps
    size = clusters if position in ("SC", "CS") else columns
    groups = [steps[start : start + size] for start in range(0, clusters, size)]
    before = position in ("SC", "SCS")
    return [step for group in groups for step in ([SEPARATOR, *group] if before else [*group, SEPARATOR])]


def separator_values(value: str, tokens: int, channels: int) -> Tensor:
    """The values of a separator, (1, S, C).

    Args:
        value: "zeros"; "ones"; "identity", the S tokens as a square image whose diagonal is 1 and the rest 0;
            "embedding" (learned), zeros that the caller initialises.

    Raises:
        ValueError: for "identity" if the number of tokens is not a square.
    """
    if value == "ones":
        return torch.ones(1, tokens, channels)
    result = torch.zeros(1, tokens, channels)
    if value == "identity":
        side = round(tokens**0.5)
        if side * side != tokens:
            raise ValueError(f"separator value 'identity' needs a square number of tokens, not {tokens}")
        result[:, :: side + 1] = 1
    return result
