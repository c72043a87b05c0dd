"""Scan and convolution operators: against the reference loop, against each other, and as PyTorch operators."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from arm_backbone.ops import cross_conv, cross_scan, resolve_backend
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
    weight = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return dict(zip(tensors, torch.autograd.grad((output * weight).sum(), tensors.values()), strict=True))


def assert_close(a, b, rtol):
    assert (a - b).abs().max() <= rtol * b.abs().max() + 1e-14


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 4), (5, 7), (1, 33)])
@pytest.mark.parametrize("scans", [1, 4])
def test_torch_backend_equals_the_reference(grid, scans):
    inputs = scan_inputs(grid=grid, scans=scans)
    outputs = {name: cross_scan(**inputs, backend=name) for name in ("reference", "torch")}
    assert_close(outputs["torch"], outputs["reference"], 1e-12)
    expected = gradients(outputs["reference"], inputs)
    for name, grad in gradients(outputs["torch"], inputs).items():
        assert_close(grad, expected[name], 1e-12)


def test_optional_arguments():
    inputs = scan_inputs() | dict(D=None, delta_bias=None, delta_softplus=False)
    inputs["delta"] = (inputs["delta"].detach().abs() / 4).requires_grad_()
    outputs = [cross_scan(**inputs, backend=name) for name in ("reference", "torch")]
    assert_close(outputs[1], outputs[0], 1e-12)
    expected = gradients(outputs[0], inputs)
    for name, grad in gradients(outputs[1], inputs).items():
        assert_close(grad, expected[name], 1e-12)


def test_slabs_do_not_change_the_result(monkeypatch):
    inputs = scan_inputs(batch=5)
    whole = cross_scan(**inputs)
    expected = gradients(whole, inputs)
    monkeypatch.setattr("arm_backbone.ops.scan_torch.SLAB", 1)  # one image at a time
    sliced = cross_scan(**inputs)
    assert_close(sliced, whole, 1e-14)
    for name, grad in gradients(sliced, inputs).items():
        assert_close(grad, expected[name], 1e-12)


def test_four_scans_equal_four_single_scans():
    """How the directions are batched does not matter, nor which images share a batch."""
    inputs = scan_inputs()
    together = cross_scan(**inputs)
    singles = [
        cross_scan(
            *(inputs[n][:, k : k + 1] for n in ("u", "delta")),
            inputs["A"][k : k + 1],
            *(inputs[n][:, k : k + 1] for n in ("B", "C")),
            *(inputs[n][k : k + 1] for n in ("D", "delta_bias", "orders")),
        )
        for k in range(4)
    ]
    assert_close(together, torch.stack(singles).mean(0), 1e-13)
    one_image = {n: v[:1] if v.ndim == 4 else v for n, v in inputs.items()}
    assert_close(cross_scan(**one_image), together[:1], 1e-13)


def test_reduced_precision_keeps_the_state_in_float32():
    inputs = {n: v.detach().float() if v.is_floating_point() else v for n, v in scan_inputs(grid=(20, 20)).items()}
    expected = cross_scan(**inputs)
    low = inputs | {n: inputs[n].bfloat16() for n in ("u", "delta", "B", "C")}
    result = cross_scan(**low)
    assert result.dtype == torch.bfloat16
    assert (result.float() - expected).abs().max() < 2e-2 * expected.abs().max()


def test_convolution_equals_conv1d_in_scan_order():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_()
        for s in [(2, 35, 6), (4, 6, 4), (4, 6)]
    )
    orders = scan_orders(5, 7)
    result = cross_conv(x, weight, bias, orders)
    expected = torch.empty_like(result)
    for k, order in enumerate(orders):
        scanned = torch.nn.functional.conv1d(
            x[:, order].transpose(1, 2), weight[k].unsqueeze(1), bias[k], padding=3, groups=6
        )[..., :35]
        expected[:, k, order] = torch.nn.functional.silu(scanned).transpose(1, 2)
    assert_close(result, expected, 1e-14)
    inputs = dict(x=x, weight=weight, bias=bias)
    grads = gradients(result, inputs)
    for name, grad in gradients(expected, inputs).items():
        assert_close(grads[name], grad, 1e-12)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_convolution_of_sequences_shorter_than_the_filter(length):
    x = torch.randn(1, length, 2, dtype=torch.float64).requires_grad_()
    weight, bias = torch.randn(1, 2, 4, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    result = cross_conv(x, weight, bias, torch.arange(length)[None])
    expected = torch.nn.functional.conv1d(x.transpose(1, 2), weight[0].unsqueeze(1), padding=3, groups=2)[..., :length]
    assert_close(result[:, 0], torch.nn.functional.silu(expected).transpose(1, 2), 1e-14)
    result.sum().backward()
    assert x.grad.abs().min() > 0


def test_operators_follow_pytorchs_rules():
    """Schema, fake kernels and autograd registration, as torch.compile and torch.export need them."""
    inputs = scan_inputs(grid=(3, 6), dim=4)
    arguments = (*(inputs[n] for n in ("u", "delta", "A", "B", "C", "D", "delta_bias", "orders")), True)
    torch.library.opcheck(torch.ops.arm.cross_scan, arguments)
    x = torch.randn(2, 18, 4, requires_grad=True)
    weight, bias = torch.randn(4, 4, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.arm.cross_conv, (x, weight, bias, inputs["orders"]))


def test_flops_of_the_scan_are_counted():
    inputs = {n: v.detach() for n, v in scan_inputs().items()}
    with FlopCounterMode(display=False) as counter:
        cross_scan(**inputs)
    assert counter.get_total_flops() == 2 * 4 * 35 * 6 * (7 * 3 + 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(B=torch.zeros(2, 4, 35, 2)), "B has shape"),
        (dict(orders=torch.zeros(4, 34, dtype=torch.int64)), "orders has shape"),
        (dict(orders=torch.zeros(4, 35)), "int64"),
        (dict(u=torch.zeros(2, 3, 35, 6)), "do not go together"),
        (dict(C=torch.zeros(2, 4, 35, 3, dtype=torch.int32)), "C must be a real floating-point"),
        (dict(backend="cuda"), "backend='cuda'.*reference, torch"),
    ],
)
def test_bad_arguments_are_named(change, message):
    inputs = {n: v.detach().float() if v.is_floating_point() else v for n, v in scan_inputs().items()}
    with pytest.raises(ValueError, match=message):
        cross_scan(**inputs | change)


def test_backend_by_environment(monkeypatch):
    monkeypatch.setenv("ARM_SCAN_BACKEND", "reference")
    assert resolve_backend() == "reference"
    assert resolve_backend("torch") == "torch"
    monkeypatch.setenv("ARM_SCAN_BACKEND", "fast")
    with pytest.raises(ValueError, match="ARM_SCAN_BACKEND='fast'"):
        resolve_backend()


def test_autocast_leaves_the_scan_alone():
    """bfloat16 autocast must not reach the matrix products inside the scan, with and without gradients."""
    inputs = {n: v.detach().float() if v.is_floating_point() else v for n, v in scan_inputs().items()}
    expected = cross_scan(**inputs)
    for backend in ("reference", "torch"):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            assert_close(cross_scan(**inputs, backend=backend), expected, 1e-6)
    u = inputs["u"].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cross_scan(**inputs).sum().backward()
    exact = u.grad.clone()
    u.grad = None
    cross_scan(**inputs).sum().backward()
    assert_close(exact, u.grad, 1e-6)
