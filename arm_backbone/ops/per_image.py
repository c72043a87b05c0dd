"""Orders that differ between images: the operators run once per direction, on tokens laid out in its order.

Legend: B batch, K scan directions, L tokens, C channels.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def moved(tokens: Tensor, order: Tensor) -> Tensor:
    """Tokens (B, L, C) in the order (B, L) of each image."""
    batch, length = order.shape
    rows = order + length * torch.arange(batch, device=order.device).unsqueeze(1)
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (batch, length))


def outputs_by_direction(orders: Tensor, run: Callable[[int, Callable, Tensor], Tensor]) -> Iterator[Tensor]:
    """Run an operator for one direction after the other.

    Args:
        orders: (B, K, L), permutations.
        run: computes the output (B, L, C) of direction k in the order of the steps, given k, a function that moves
            tokens (B, L, C) into that order, and the order (1, L) of the steps themselves.

    Yields:
        the output of each direction (B, L, C) in token order.
    """
    steps = torch.arange(orders.shape[2], device=orders.device)
    for k, order in enumerate(orders.unbind(1)):
        inverse = torch.empty_like(order).scatter_(1, order, steps.expand_as(order))
        yield moved(run(k, lambda x, order=order: moved(x, order), steps.unsqueeze(0)), inverse)


def reduced(outputs: Iterator[Tensor], reduce: str, directions: int) -> Tensor:
    """The sum of the outputs (B, L, C), added in at least float32, or with reduce="mean" their mean."""
    first = next(outputs)
    total = first.to(torch.promote_types(first.dtype, torch.float32))
    for output in outputs:
        total = total + output
    return (total / directions if reduce == "mean" else total).to(first.dtype)
