"""Orders that differ between images give what one call per image gives: outputs and gradients."""

import pytest
import torch

from arm_backbone.mixer import MambaMixer
from arm_backbone.ops import ScanOrders, cross_conv, cross_scan, mamba_inner, scan_backend
from arm_backbone.ops.dispatch import unavailable

B, K, L, D, N, R, W = 3, 4, 21, 24, 8, 2, 4
TOKENS = {"x", "u", "delta", "B", "C"}  # arguments with one part per image
SHAPES = {
    cross_scan: dict(u=(B, K, L, D), delta=(B, K, L, D), A=(K, D, N), B=(B, K, L, N), C=(B, K, L, N), D=(K, D))
    | dict(delta_bias=(K, D)),
    cross_conv: dict(x=(B, L, D), weight=(K, D, W), bias=(K, D)),
    mamba_inner: dict(x=(B, L, D), conv_weight=(K, D, W), conv_bias=(K, D), x_proj_weight=(K, R + 2 * N, D))
    | dict(dt_proj_weight=(K, D, R), A_log=(K, D, N), D=(K, D), delta_bias=(K, D)),
}


def random_orders() -> torch.Tensor:
    return torch.rand(B, K, L).argsort(2)


def arguments(operator, dtype) -> dict[str, torch.Tensor]:
    tensors = {name: 0.5 * torch.randn(*shape, dtype=dtype) for name, shape in SHAPES[operator].items()}
    if operator is cross_scan:
        tensors["A"] = -tensors["A"].exp()
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


@pytest.mark.parametrize("operator", SHAPES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_equals_one_call_per_image(operator, backend):
    dtype = torch.float32 if backend == "cpu" else torch.float64
    if unavailable(backend, torch.device("cpu"), dtype):
        pytest.skip(f"{backend} cannot run here")
    torch.manual_seed(0)
    tensors, orders = arguments(operator, dtype), random_orders()

    def one(image: int) -> torch.Tensor:
        part = {name: x[image : image + 1] if name in TOKENS else x for name, x in tensors.items()}
        return operator(**part, orders=orders[image])

    with scan_backend(backend):
        results = [operator(**tensors, orders=ScanOrders(orders)), torch.cat([one(image) for image in range(B)])]
        weight = torch.randn_like(results[0])
        gradients = [torch.autograd.grad((y * weight).sum(), list(tensors.values())) for y in results]
    tolerance = dict(atol=1e-5, rtol=1e-5) if backend == "cpu" else dict(atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(*results, **tolerance)
    for name, ours, theirs in zip(tensors, *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_equal_orders_of_all_images(reduce):
    torch.manual_seed(0)
    tensors, orders = arguments(cross_scan, torch.float64), random_orders()[0]
    same = cross_scan(**tensors, orders=orders.expand(B, -1, -1), reduce=reduce)
    torch.testing.assert_close(same, cross_scan(**tensors, orders=orders, reduce=reduce), atol=1e-12, rtol=0)


def test_a_mixer_takes_them_in_bfloat16():
    torch.manual_seed(0)
    mixer, x, orders = MambaMixer(32), torch.randn(B, L, 32), ScanOrders(random_orders())
    exact = mixer(x, orders)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = mixer(x, orders)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.02 * exact.abs().max().item(), rtol=0)


@pytest.mark.parametrize("operator", SHAPES, ids=lambda f: f.__name__)
def test_wrong_orders_are_refused(operator):
    tensors, orders = arguments(operator, torch.float32), random_orders()
    wrong = orders.clone()
    wrong[1, 2, 0] = wrong[1, 2, 1]
    with pytest.raises(ValueError, match=r"orders\[1, 2\] is not a permutation of the 21 tokens"):
        operator(**tensors, orders=wrong)
    with pytest.raises(ValueError, match=r"orders has shape \(2, 4, 21\)"):
        operator(**tensors, orders=orders[:2])
    with pytest.raises(ValueError, match=r"it must be \(3, 4, 21\)"):
        operator(**tensors, orders=ScanOrders(orders[:, :2]))
    changed = ScanOrders(orders)
    changed.tensor[0, 0, 0] = L
    with pytest.raises(ValueError, match=r"orders\[0, 0\] is not a permutation"):
        operator(**tensors, orders=changed)
