"""Tokens of several directions lie in memory direction by direction, so that a projection is one matrix product each.

Legend: B batch, K scan directions, L tokens, C numbers of a token.
"""

from torch import Tensor


def by_direction(x: Tensor) -> Tensor:
    """(B, K, L, C) -> (K, B, L, C), contiguous; a view where x lies so already."""
    return x.transpose(0, 1).contiguous()


def empty_by_direction(like: Tensor, batch: int, directions: int, length: int, channels: int) -> Tensor:
    """(B, K, L, C) that lies direction by direction; type and device of another tensor."""
    return like.new_empty(directions, batch, length, channels).transpose(0, 1)
