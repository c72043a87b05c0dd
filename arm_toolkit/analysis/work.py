"""Counts what a model computes for an image: its matrix products, and the steps of its selective scans."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from arm_backbone.ops import scan_backend

_OPERATORS = torch.ops.arm


@dataclass(frozen=True)
class Work:
    """What a model computes for one image.

    Attributes:
        forward, backward: FLOPs of matrix products and convolutions, without the mixer's causal one; a multiply-add
            counts as two.
        scan_steps: states that the selective scans of the forward update: directions x tokens x channels x states.
    """

    forward: float
    backward: float
    scan_steps: float


def work_of(run: Callable[[], Tensor], images: int, backward: bool = False) -> Work:
    """Count the work of a run on the meta device.

    Args:
        run: the forward of a batch.
        images: in the batch.
        backward: also count the gradients of the result, a scalar.
    """
    formulas = {_OPERATORS.cross_scan: _steps, _OPERATORS.cross_scan_backward: _nothing}
    formulas |= {_OPERATORS.cross_conv: _nothing, _OPERATORS.cross_conv_backward: _nothing}
    formulas |= {torch.ops.aten.convolution_backward: _convolution_backward}
    # plain operators: the scan is then a registered one; attention as matrix products, which are always counted
    with (
        scan_backend("torch"),
        sdpa_kernel(SDPBackend.MATH),
        torch.set_grad_enabled(backward),
        FlopCounterMode(display=False, custom_mapping=formulas) as counter,
    ):
        result = run()
        forward, scan_steps = _counted(counter)
        if backward:
            result.backward()
    total, _ = _counted(counter)
    return Work(forward / images, (total - forward) / images, scan_steps / images)


def _steps(u_shape, delta_shape, A_shape, *args, out_shape=None, **kwargs) -> int:
    return math.prod(u_shape) * A_shape[2]


def _convolution_backward(grad_shape, x_shape, w_shape, *args, out_shape=None, **kwargs) -> int:
    """As many as the forward for each of the gradients of x and w; PyTorch's formula ignores groups."""
    transposed, output_mask = args[4], args[7]
    flops = 2 * math.prod(x_shape if transposed else grad_shape) * math.prod(w_shape[1:])
    return flops * sum(output_mask[:2])


def _nothing(*args, out_shape=None, **kwargs) -> int:
    return 0


def _counted(counter: FlopCounterMode) -> tuple[int, int]:
    """FLOPs of the products, and scan steps, so far."""
    counts = counter.get_flop_counts().get("Global", {})
    scan_steps = counts.pop(_OPERATORS.cross_scan, 0)
    return sum(counts.values()), scan_steps
