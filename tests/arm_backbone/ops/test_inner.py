"""The CPU kernels of a block, called without PyTorch's dispatcher, and the cases that are left to PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from arm_backbone.block import Block
from arm_backbone.mixer import MambaMixer
from arm_backbone.ops import add_layer_norm, dispatch, gated_linear, layer_norm, silu_gate
from arm_backbone.ops.cpu import gate as cpu_gate
from arm_backbone.ops.cpu import library as native
from arm_backbone.ops.cpu import norm as cpu_norm
from arm_backbone.ops.inner import mamba_inner
from arm_backbone.scan_order import scan_orders
from tests.helpers.scans import names

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
EPS = 0.1  # so large that it matters


@pytest.fixture(params=native.ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("ARM_CPU_ISA", request.param)
    try:
        native.kernels()
    except ValueError as error:
        pytest.skip(str(error))


def close(result, expected, tolerance):
    """Compare with a tolerance relative to the largest expected value."""
    assert result.shape == expected.shape
    assert (result.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 7, 64, 100])
def test_gate(isa, width, dtype):
    """The inputs are halves of one projection's output, so their rows are strided."""
    torch.manual_seed(0)
    x, z = (torch.randn(2, 5, 2 * width) * 4).to(dtype).chunk(2, dim=-1)
    grad = torch.randn(5, 2, width).to(dtype).transpose(0, 1)
    tolerance = 1e-6 if dtype == torch.float32 else 2.0**-8
    exact = [t.double().requires_grad_() for t in (x, z)]
    expected = exact[0] * F.silu(exact[1])
    result = cpu_gate.gate_forward(x, z)
    assert result.dtype == dtype
    close(result, expected, tolerance)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    halves = torch.cat([grad, torch.full_like(grad, torch.nan)], -1).chunk(2, -1)
    over = grad.contiguous()  # the gradient of x overwrites it
    for given, to in ((grad, ()), (over, (over,)), (halves[0], halves)):
        results = cpu_gate.gate_backward(given, x, z, *to)
        assert (results[0] is given) == bool(to) and (results[1] is halves[1]) == (to is halves)
        for got, want in zip(results, wanted, strict=True):
            close(got, want, tolerance)


def test_gate_of_extreme_numbers(isa):
    z = torch.tensor([[-3e38, -200, -100, 0, 100, 3e38, torch.inf, torch.nan]])
    x = torch.full_like(z, 2)
    assert torch.allclose(cpu_gate.gate_forward(x, z), x * F.silu(z), equal_nan=True)
    exact = [x.clone().requires_grad_(), z.clone().requires_grad_()]
    wanted = torch.autograd.grad(exact[0] * F.silu(exact[1]), exact, torch.ones_like(x))
    got_x, got_z = cpu_gate.gate_backward(torch.ones_like(x), x, z)
    assert torch.allclose(got_x, wanted[0], equal_nan=True)
    assert torch.allclose(got_z[:, :-2], wanted[1][:, :-2])  # PyTorch's own gradient is NaN at infinity


@pytest.mark.parametrize("width", [5, 17, 64, 100])
@pytest.mark.parametrize("of_sum", [False, True], ids=["alone", "after a sum"])
@pytest.mark.parametrize("used", ["norm", "norm and sum"])
@pytest.mark.parametrize("kind", ["layer", "layer without bias", "rms"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norm(isa, width, of_sum, used, kind, dtype):
    torch.manual_seed(0)
    # each tensor has another row stride
    x, branch, grad, grad_total = (torch.randn(3, 5, width + more) + 2 for more in (1, 2, 3, 4))
    branch, grad = branch.to(dtype), grad.to(dtype)
    x, branch, grad, grad_total = (t[..., :width] for t in (x, branch, grad, grad_total))
    weight, bias = torch.randn(width), torch.randn(width) if kind == "layer" else None
    if used == "norm":
        grad_total = None
    exact = [t.double().requires_grad_() for t in (x, branch, weight, bias) if t is not None]
    total = exact[0] + exact[1] if of_sum else exact[0] * 1
    if kind == "rms":
        expected = F.rms_norm(total, (width,), exact[2], EPS)
    else:
        expected = F.layer_norm(total, (width,), *exact[2:], **{} if bias is not None else dict(bias=None), eps=EPS)
    centered = kind != "rms"
    given = (x, branch if of_sum else None, weight, bias, EPS, centered, dtype)
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    got_total, out, *statistics = cpu_norm.norm_forward(*given)
    close(got_total, total, 1e-7)
    assert out.dtype == dtype
    close(out, expected, rounding)
    objective = (expected * grad.double()).sum()
    if grad_total is not None:
        objective = objective + (total * grad_total.double()).sum()
    wanted = list(torch.autograd.grad(objective, exact, allow_unused=True))
    branch_type = dtype if of_sum else None
    results = cpu_norm.norm_backward(grad, grad_total, got_total, weight, *statistics, centered, branch_type)
    for name, got, want in zip(("x", "branch", "weight", "bias"), results, wanted):
        if want is None:
            assert got is None
            continue
        close(got, want, max(rounding, 1e-5) if name == "branch" else 1e-5)


def test_kernels_take_the_rms_norm_of_float32():
    """PyTorch computes a LayerNorm in one pass, but an RMSNorm in several."""
    x, branch = torch.randn(2, 5, 24).requires_grad_(), torch.randn(2, 5, 24)
    for kind, taken in ((nn.RMSNorm, True), (nn.LayerNorm, False)):
        layer = kind(24)
        total, normed = add_layer_norm(x, branch, layer)
        for result, expected in ((layer_norm(x, layer), layer(x)), (normed, layer(x + branch))):
            close(result, expected, 1e-6 if taken else 0)
            assert ("_NormBackward" in names(result.grad_fn)) == taken
        assert torch.equal(total, x + branch)


def test_nan_stays_nan_in_bfloat16(isa):
    """Plain rounding would turn the largest bit pattern of NaN into -0."""
    x = torch.randn(2, 8)
    x[0, 3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    out = cpu_norm.norm_forward(x, None, torch.ones(8), torch.zeros(8), EPS, True, torch.bfloat16)[1]
    assert out[0].isnan().all() and out[1].isfinite().all()


def run(block, inputs, orders, dtype):
    """The result, and its gradients computed twice from one graph."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        result = block(inputs[0], orders)
    grad = torch.linspace(-1, 1, result.numel(), dtype=torch.float32).view_as(result)
    return result, *(torch.autograd.grad(result, inputs, grad, retain_graph=True) for _ in range(2))


FUSED = {"_MambaInnerBackward", "_GatedLinearBackward"}


@pytest.mark.parametrize(("dim", "images", "scans"), [(40, 2, 1), (40, 2, 4), (150, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block(isa, dtype, dim, images, scans, monkeypatch):
    """Compare a fused block with PyTorch's operators; 150 channels are whole groups of channels and a part of one."""
    torch.manual_seed(0)
    block, orders = Block(dim, scans=scans, drop_path=0.0, num_blocks=12), scan_orders(5, 7, scans)
    inputs = [torch.randn(images, 35, dim).requires_grad_(), *block.parameters()]
    fused = FUSED | {"_NormBackward"} if dtype == torch.bfloat16 else FUSED
    result, grads, again = run(block, inputs, orders, dtype)
    assert fused <= names(result.grad_fn)
    assert all(map(torch.equal, grads, again))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert torch.equal(block(inputs[0], orders), result)
    monkeypatch.setattr(dispatch, "_direct", lambda *args, **kwargs: None)
    monkeypatch.setattr(dispatch, "unavailable", lambda *args: "not here")
    expected, wanted, _ = run(block, inputs, orders, dtype)
    assert not fused & names(expected.grad_fn)
    close(result, expected, 2e-6 if dtype == torch.float32 else 1e-2)
    for got, want in zip(grads, wanted, strict=True):
        assert got.dtype == want.dtype
        close(got, want, 1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("scans", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_in_the_scans_own_pass(isa, dtype, scans):
    """Bit-equal to a gate afterwards; also with gradients, and for orders that differ between images."""
    torch.manual_seed(0)
    mixer, orders = MambaMixer(70, scans=scans).to(dtype), scan_orders(5, 7, scans)
    x, gate = torch.randn(2, 35, 140, dtype=dtype).chunk(2, dim=-1)
    weights = dict(conv_weight=mixer.conv_weight, conv_bias=mixer.conv_bias, x_proj_weight=mixer.x_proj_weight)
    weights |= dict(dt_proj_weight=mixer.dt_proj_weight, A_log=mixer.A_log, D=mixer.D, delta_bias=mixer.dt_proj_bias)
    for given in (orders, orders.expand(2, -1, -1)):
        expected = silu_gate(mamba_inner(x, **weights, orders=given), gate)
        assert torch.equal(mamba_inner(x, **weights, orders=given, gate=gate), expected)
        with torch.no_grad():
            assert torch.equal(mamba_inner(x, **weights, orders=given, gate=gate), expected)
    with pytest.raises(ValueError, match=r"gate has shape \(2, 35, 69\); with x .* it must be \(2, 35, 70\)"):
        mamba_inner(x, **weights, orders=orders, gate=gate[..., 1:])


def test_threads():
    """The number of threads, each with its own channels or rows, changes results only by rounding."""
    torch.manual_seed(0)
    block, orders = Block(150, scans=1, drop_path=0.0, num_blocks=12), scan_orders(5, 7, 1)
    inputs = [torch.randn(1, 35, 150).requires_grad_(), *block.parameters()]
    for dtype in (torch.float32, torch.bfloat16):
        expected, wanted, _ = run(block, inputs, orders, dtype)
        torch.set_num_threads(3)
        try:
            result, grads, again = run(block, inputs, orders, dtype)
        finally:
            torch.set_num_threads(1)
        assert all(map(torch.equal, grads, again))
        for got, want in zip((result, *grads), (expected, *wanted), strict=True):
            close(got, want, 2e-6 if dtype == torch.float32 else 1e-2)


def test_a_block_keeps_little(monkeypatch):
    """It recomputes the convolution and delta of every direction in the backward instead of saving them."""
    block, orders, kept = Block(64, scans=4, drop_path=0.0, num_blocks=12), scan_orders(8, 8, 4), []
    own = {p.data_ptr() for p in block.parameters()}
    for backend in ("auto", "torch"):
        monkeypatch.setenv("ARM_SCAN_BACKEND", backend)
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.update({t.data_ptr(): t}) or t, lambda t: t):
            block(torch.randn(1, 64, 64), orders)
        kept.append(sum(t.numel() for address, t in sizes.items() if address not in own))
    assert kept[1] - kept[0] > 7 * 64 * 64


def test_gated_product_is_not_kept():
    linear, sizes = nn.Linear(64, 3), []
    x, z = torch.randn(2, 50, 64).requires_grad_(), torch.randn(2, 50, 64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.data_ptr()) or t, lambda t: t):
        gated_linear(x, z, linear)
    assert set(sizes) == {x.data_ptr(), z.data_ptr(), linear.weight.data_ptr()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_left_to_pytorch(dtype):
    x, z = torch.randn(2, 3, 8, dtype=dtype).requires_grad_(), torch.randn(2, 3, 8, dtype=dtype)
    result = silu_gate(x, z)
    assert "_GateBackward" not in names(result.grad_fn) and result.dtype == dtype
    layer = nn.LayerNorm(8)
    with torch.autocast("cpu", torch.float16):
        assert "_NormBackward" not in names(layer_norm(torch.randn(2, 3, 8).requires_grad_(), layer).grad_fn)


def test_dispatch_modes_see_the_operators(monkeypatch):
    block, orders = Block(40, scans=4, drop_path=0.0, num_blocks=12), scan_orders(5, 7, 4)
    x, counts = torch.randn(2, 35, 40).requires_grad_(), []
    for backend in ("auto", "torch"):
        monkeypatch.setenv("ARM_SCAN_BACKEND", backend)
        with FlopCounterMode(display=False) as counter:
            result = block(x, orders)
        counts.append(counter.get_total_flops())
        assert not FUSED & names(result.grad_fn)
    assert counts[0] == counts[1] > 0


def test_hooks_see_the_input_of_a_layer():
    x, z, linear, layer, seen = torch.randn(2, 3, 8), torch.randn(2, 3, 8), nn.Linear(8, 4), nn.LayerNorm(8), []
    for module in (linear, layer):
        module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    gated_linear(x, z, linear)
    close(seen[0], x * F.silu(z), 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        add_layer_norm(x, z.bfloat16(), layer)
    assert torch.equal(seen[1], x + z.bfloat16())


def test_shapes_and_types_that_kernels_do_not_take():
    """Kernels would access memory beyond the smaller tensor or misread its type, so PyTorch computes these cases."""
    x, layer = torch.randn(2, 9, 8).requires_grad_(), nn.LayerNorm(8, eps=EPS)
    for z in (torch.randn(1, 9, 8), torch.randn(8)):
        result = silu_gate(x, z.requires_grad_())
        assert torch.equal(result, x * F.silu(z)) and "_GateBackward" not in names(result.grad_fn)
    for branch in (torch.randn(1, 9, 8).bfloat16(), torch.randn(2, 9, 8)):
        with torch.autocast("cpu", torch.bfloat16):
            total, normed = add_layer_norm(x, branch, layer)
            assert torch.equal(total, x + branch) and torch.equal(normed, layer(x + branch))
        assert "_NormBackward" not in names(normed.grad_fn)
    with pytest.raises((RuntimeError, NotImplementedError)):
        silu_gate(x, torch.empty(2, 9, 8, device="meta"))


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_default_types_do_not_matter(default):
    torch.manual_seed(0)
    block, orders = Block(40, scans=4, drop_path=0.0, num_blocks=12), scan_orders(5, 7, 4)
    inputs = [torch.randn(2, 35, 40).requires_grad_(), *block.parameters()]
    for dtype in (torch.float32, torch.bfloat16):
        expected, wanted, _ = run(block, inputs, orders, dtype)
        try:
            torch.set_default_dtype(default)
            result, grads, _ = run(block, inputs, orders, dtype)
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(result, expected) and all(map(torch.equal, grads, wanted))


def test_one_row_and_no_rows():
    layer = nn.LayerNorm(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer_norm(torch.randn(8), layer).shape == (8,)
        assert layer_norm(torch.randn(0, 8), layer).shape == (0, 8)
    assert silu_gate(torch.randn(8), torch.randn(8)).shape == (8,)
    assert silu_gate(torch.randn(0, 8), torch.randn(0, 8)).shape == (0, 8)
