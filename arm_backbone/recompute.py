"""Activation checkpointing of blocks: less memory for activations, which the backward computes again.

Legend: B batch, K scan directions, L tokens, C channels.
"""

import functools
import logging

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from .ops.inner import uses_fused_inner
from .ops.orders import ScanOrders

_logger = logging.getLogger(__name__)

# operators whose results selective checkpointing keeps
EXPENSIVE = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.arm.cross_scan.default,
]


def resolve_with_cp(with_cp: bool | str) -> bool | str:
    """Map every accepted value of `with_cp` to False, "selective" or "full".

    True means "full", as in mmdet. "all", the former name of "full", is accepted with a warning.

    Raises:
        ValueError: for any other value.
    """
    if with_cp == "all":
        _logger.warning('with_cp="all" is now called "full"; please change the configuration')
        return "full"
    if with_cp not in (False, True, "selective", "full"):
        raise ValueError(f"with_cp={with_cp!r} is unknown; give False, 'selective' or 'full' (True means 'full')")
    return "full" if with_cp is True else with_cp


def run_checkpointed(block: nn.Module, x: Tensor, orders: ScanOrders | Tensor, with_cp: bool | str) -> Tensor:
    """Run a block around `mamba_inner` with activation checkpointing.

    Args:
        x: (B, L, C).
        orders: (K, L) or (B, K, L).
        with_cp: False keeps all activations; "selective" keeps the results of matmuls and scans and recomputes the
            rest; "full" keeps only the input and recomputes the whole block.
    """
    if with_cp == "selective" and uses_fused_inner(x):  # the fused mixer recomputes its cheap parts itself, faster
        return block(x, orders)
    return run_recomputed(block, x, orders, with_cp)


def run_recomputed(block: nn.Module, x: Tensor, orders: ScanOrders | Tensor, with_cp: bool | str) -> Tensor:
    """`run_checkpointed` for a block whose mixer is not `mamba_inner`, with tokens x of any shape."""
    if not with_cp or not torch.is_grad_enabled():
        return block(x, orders)
    if with_cp == "full":
        return checkpoint(block, x, orders, use_reentrant=False)
    context = functools.partial(create_selective_checkpoint_contexts, EXPENSIVE)
    return checkpoint(block, x, orders, use_reentrant=False, context_fn=context)
