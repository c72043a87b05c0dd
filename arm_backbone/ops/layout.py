"""Memory layout (K, B, L, C): each direction is contiguous, so each projection is one matmul.

Legend: B batch, K scan directions, L tokens, C channels of a token.
"""

from torch import Tensor


def by_direction(x: Tensor) -> Tensor:
    """(B, K, L, C) -> (K, B, L, C), contiguous; a view if x is already laid out by direction."""
    return contiguous(x.transpose(0, 1))


def contiguous(x: Tensor) -> Tensor:
    """`x.contiguous()` for x (..., L, C), faster on a CPU if the tokens lie last in memory."""
    if x.is_contiguous() or not is_tokens_last(x) or x.device.type != "cpu":
        return x.contiguous()
    moved = x.new_empty(x.shape)  # matrix by matrix: PyTorch copies a transposed matrix in blocks, a stack by element
    matrices = x.transpose(-1, -2).flatten(0, -3).transpose(-1, -2)
    for to, matrix in zip(moved.flatten(0, -3), matrices, strict=True):
        to.copy_(matrix)
    return moved


def is_tokens_last(x: Tensor) -> bool:
    """Whether x (..., L, C) lies in memory as (..., C, L)."""
    return x.transpose(-1, -2).is_contiguous()


def is_shared(x: Tensor) -> bool:
    """Whether the K directions of x (B, K, L, C) are one expanded map in memory."""
    return x.shape[1] > 1 and x.stride(1) == 0


def as_rows(x: Tensor) -> tuple[Tensor, int]:
    """x (..., L, C) with contiguous channels, and its row stride; copied only if needed.

    A slice of a projection's output channels, for example, is not copied.
    """
    strides, step = [1], x.stride(-2)
    for size in (1, *reversed(x.shape[1:-1])):
        strides.append(step * size)
        step = strides[-1]
    if x.stride() == tuple(reversed(strides)):
        return x, x.stride(-2)
    return x.contiguous(), x.shape[-1]


def empty_by_direction(like: Tensor, batch: int, directions: int, length: int, channels: int) -> Tensor:
    """(B, K, L, C), laid out by direction, with the dtype and device of another tensor."""
    return like.new_empty(directions, batch, length, channels).transpose(0, 1)
