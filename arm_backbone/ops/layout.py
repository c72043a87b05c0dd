"""Tokens of several directions lie in memory direction by direction, so that a projection is one matrix product each.

Legend: B batch, K scan directions, L tokens, C numbers of a token.
"""

from torch import Tensor


def by_direction(x: Tensor) -> Tensor:
    """(B, K, L, C) -> (K, B, L, C), contiguous; a view where x lies so already."""
    return x.transpose(0, 1).contiguous()


def rows(x: Tensor) -> tuple[Tensor, int]:
    """x (..., L, C) with the C numbers of a token together, and the step from any token to the next.

    Not copied if it is so already, such as a part of a projection's output.
    """
    strides, step = [1], x.stride(-2)
    for size in (1, *reversed(x.shape[1:-1])):
        strides.append(step * size)
        step = strides[-1]
    if x.stride() == tuple(reversed(strides)):
        return x, x.stride(-2)
    return x.contiguous(), x.shape[-1]


def empty_by_direction(like: Tensor, batch: int, directions: int, length: int, channels: int) -> Tensor:
    """(B, K, L, C) that lies direction by direction; type and device of another tensor."""
    return like.new_empty(directions, batch, length, channels).transpose(0, 1)
