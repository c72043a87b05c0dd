"""Causal depthwise convolution and SiLU in several scan orders: the step before the selective scan.

Legend: B batch, K scan directions, L tokens, D channels, W taps.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .checks import check_positive, check_real, check_tensors
from .dispatch import conv_kernels, plain_functions
from .layout import empty_by_direction
from .library import define_op, register_backward
from .orders import ScanOrders, are_per_image, check_fit, image_orders, order_tensor
from .per_image import outputs_by_direction


def cross_conv(x: Tensor, weight: Tensor, bias: Tensor, orders: ScanOrders | Tensor) -> Tensor:
    """Causal depthwise convolution along each scan order (zeros before the first step), then SiLU.

    Args:
        x: (B, L, D), in token order.
        weight: (K, D, W), of any floating-point dtype; the last tap applies to the current token, the first to the
            token W - 1 steps before.
        bias: (K, D), of any floating-point dtype.
        orders: (K, L), or (B, K, L) if images differ, as in `cross_scan`.

    Returns:
        (B, K, L, D), in token order.

    Raises:
        ValueError: for incompatible shapes, devices or dtypes, or orders that are not permutations.
        NotImplementedError: for forward-mode and torch.func derivatives with a back end of kernels.
    """
    _check(x, weight, bias)
    if are_per_image(orders):

        def run(k, move, steps):
            return cross_conv(move(x), weight[k : k + 1], bias[k : k + 1], ScanOrders.trusted(steps)).squeeze(1)

        orders = image_orders(orders, len(weight), x)
        return torch.stack(list(outputs_by_direction(orders, run))).transpose(0, 1)
    orders = order_tensor(orders, len(weight), x)
    plain = plain_functions(x, weight, bias)
    if plain is not None:
        return plain.conv(x, weight, bias, orders)
    return _cross_conv(x, weight, bias, orders)


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    check_real("x", x)
    check_real("weight", weight)
    if x.ndim != 3 or weight.ndim != 3 or x.shape[2] != weight.shape[1]:
        raise ValueError(
            f"incompatible shapes: x (B, L, D) is {tuple(x.shape)}, weight (K, D, W) {tuple(weight.shape)}"
        )
    shapes = {"x": (x, x.shape), "weight": (weight, weight.shape), "bias": (bias, weight.shape[:2])}
    check_tensors(shapes, ("weight",))
    check_positive(directions=weight.shape[0], taps=weight.shape[2])


def _run(x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor) -> Tensor:
    if x.shape[2:] != weight.shape[1:2] or bias.shape != weight.shape[:2]:  # in a traced program nobody has checked
        _check(x, weight, bias)
    check_fit(orders, len(weight), x)
    return conv_kernels(x, weight.shape[2]).conv_forward(x, weight, bias, orders)


def _fake(x, weight, bias, orders):
    return empty_by_direction(x, x.shape[0], orders.shape[0], *x.shape[1:])


_cross_conv = define_op("cross_conv", _run, _fake)


def _run_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, orders: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return conv_kernels(x, weight.shape[2]).conv_backward(grad, x, weight, bias, orders)


def _fake_backward(grad, x, weight, bias, orders):
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(bias)


_cross_conv_backward = define_op("cross_conv_backward", _run_backward, _fake_backward)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return (*_cross_conv_backward(grad, *ctx.saved_tensors), None)


register_backward(_cross_conv, _setup_context, _backward)


@register_flop_formula(torch.ops.arm.cross_conv)
def _flops(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * x_shape[0] * x_shape[1] * weight_shape[0] * weight_shape[1] * weight_shape[2]


@register_flop_formula(torch.ops.arm.cross_conv_backward)
def _backward_flops(grad_shape, x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return 3 * _flops(x_shape, weight_shape)
