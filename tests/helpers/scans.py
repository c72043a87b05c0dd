"""Inputs of scans, and comparisons of a back end with the float64 reference."""

import hashlib

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
    weight = torch.linspace(-1, 2, output.numel(), dtype=torch.float64, device=output.device)
    weight = weight.to(output.dtype).view_as(output)  # the same weights in any dtype, rounded once
    return dict(zip(tensors, torch.autograd.grad((output * weight).sum(), tensors.values()), strict=True))


def assert_close(a, b, rtol):
    assert (a - b).abs().max() <= rtol * b.abs().max() + 1e-14


def cast(inputs, dtype):
    return {
        n: v.detach().to(dtype).requires_grad_() if torch.is_tensor(v) and v.is_floating_point() else v
        for n, v in inputs.items()
    }


_references: dict[bytes, tuple[torch.Tensor, dict[str, torch.Tensor]]] = {}


def reference(inputs):
    """Result and gradients of the float64 reference, computed once per run of pytest for the same numbers."""
    exact = cast(inputs, torch.float64)
    key = hashlib.sha256()
    for name, value in exact.items():
        tensor = torch.is_tensor(value)
        key.update(repr((name, value.shape, value.device) if tensor else (name, value)).encode())
        if tensor:
            key.update(value.detach().cpu().numpy().tobytes())
    if key.digest() not in _references:
        result = cross_scan(**exact, backend="reference")
        _references[key.digest()] = result.detach(), gradients(result, exact) if result.numel() else {}
    return _references[key.digest()]


def compare(inputs, run):
    """Compare a back end's result and gradients with the float64 reference of the same numbers.

    The numbers are rounded to float32 first, so that back ends of either precision share one reference.
    """
    backend, dtype, tolerance = run
    inputs = cast(cast(inputs, torch.float32), dtype)
    expected, wanted = reference(inputs)
    result = cross_scan(**inputs, backend=backend)
    assert result.dtype == dtype and result.shape == expected.shape
    if not result.numel():
        result.sum().backward()
        return
    assert_close(result, expected, tolerance)
    with torch.no_grad():  # a separate path, which keeps no states
        assert torch.equal(cross_scan(**inputs, backend=backend), result)
    for name, grad in gradients(result, inputs).items():
        assert grad.shape == wanted[name].shape, name
        assert_close(grad, wanted[name], 3 * tolerance)


def scan_gradients(inputs):
    """Gradients of a weighted sum of a scan's result; the weights are exact in bfloat16."""
    leaves = {n: v.clone().requires_grad_() for n, v in inputs.items() if v.is_floating_point()}
    y = cross_scan(**inputs | leaves)
    weight = (torch.arange(y.numel()) % 13 - 6).view_as(y).to(y.dtype)
    return dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), weight)))


def names(last) -> set[str]:
    """Names of the autograd nodes from `last` backwards."""
    found, left = set(), [last]
    while left:
        node = left.pop()
        found.add(type(node).__name__)
        left += [before for before, _ in node.next_functions if before is not None]
    return found
