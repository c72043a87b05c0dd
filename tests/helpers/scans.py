"""Inputs of scans, and comparisons of a back end with the float64 reference."""

import torch

from arm_backbone.ops import cross_scan
from arm_backbone.scan_order import scan_orders


def scan_inputs(batch=2, grid=(5, 7), scans=4, dim=6, state=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    length = grid[0] * grid[1]
    A = (-torch.rand(scans, dim, state, generator=generator, dtype=dtype) * 3).requires_grad_()
    return dict(
        u=normal(batch, scans, length, dim),
        delta=normal(batch, scans, length, dim),
        A=A,
        B=normal(batch, scans, length, state),
        C=normal(batch, scans, length, state),
        D=normal(scans, dim),
        delta_bias=normal(scans, dim),
        orders=scan_orders(*grid, scans),
    )


def gradients(output, inputs):
    tensors = {k: v for k, v in inputs.items() if torch.is_tensor(v) and v.requires_grad}
    weight = torch.linspace(-1, 2, output.numel(), dtype=torch.float64, device=output.device)  # exact in any type
    weight = weight.to(output.dtype).view_as(output)
    return dict(zip(tensors, torch.autograd.grad((output * weight).sum(), tensors.values()), strict=True))


def assert_close(a, b, rtol):
    assert (a - b).abs().max() <= rtol * b.abs().max() + 1e-14


def cast(inputs, dtype):
    return {
        n: v.detach().to(dtype).requires_grad_() if torch.is_tensor(v) and v.is_floating_point() else v
        for n, v in inputs.items()
    }


def compare(inputs, run):
    """Result and every gradient of a back end against the float64 reference of the same numbers."""
    backend, dtype, tolerance = run
    inputs = cast(inputs, dtype)
    exact = cast(inputs, torch.float64)
    expected = cross_scan(**exact, backend="reference")
    result = cross_scan(**inputs, backend=backend)
    assert result.dtype == dtype and result.shape == expected.shape
    if not result.numel():
        result.sum().backward()
        return
    assert_close(result, expected, tolerance)
    with torch.no_grad():  # another path: no states are kept
        assert torch.equal(cross_scan(**inputs, backend=backend), result)
    wanted = gradients(expected, exact)
    for name, grad in gradients(result, inputs).items():
        assert grad.shape == wanted[name].shape, name
        assert_close(grad, wanted[name], 3 * tolerance)


def scan_gradients(inputs):
    """Of the sum of a scan's result weighted with numbers that bfloat16 holds, as if it came out of float32."""
    leaves = {n: v.clone().requires_grad_() for n, v in inputs.items() if v.is_floating_point()}
    y = cross_scan(**inputs | leaves)
    weight = (torch.arange(y.numel()) % 13 - 6).view_as(y).to(y.dtype)
    return dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), weight)))


def names(last) -> set[str]:
    found, left = set(), [last]
    while left:
        node = left.pop()
        found.add(type(node).__name__)
        left += [before for before, _ in node.next_functions if before is not None]
    return found
