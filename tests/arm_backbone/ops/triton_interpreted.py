"""The Triton kernels in Triton's interpreter; test_triton.py runs this with TRITON_INTERPRET=1."""

import copy

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from triton.runtime import interpreter

from arm_backbone.block import Block, SwiGLU
from arm_backbone.ops import cross_conv, cross_scan
from arm_backbone.ops.scan_inputs import ScanInputs
from arm_backbone.ops.triton import conv as conv_triton
from arm_backbone.ops.triton import gate as gate_triton
from arm_backbone.ops.triton import norm as norm_triton
from arm_backbone.ops.triton import scan as scan_triton
from arm_backbone.recompute import run_checkpointed
from arm_backbone.scan_order import grid_orders, scan_orders
from tests.helpers.scans import assert_close, cast, compare, gradients, names, scan_gradients, scan_inputs

TRITON = ("triton", torch.float32, 3e-6)
_patch_lang_tensor = interpreter._patch_lang_tensor


def _patched(tensor, scope) -> None:
    """Make int() work on the scalars of Triton 3.6: one-element arrays, for which numpy 2.4 raises an error."""
    _patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patched


@pytest.fixture(params=[1, 10**6], ids=["whole", "segments"])
def programs(request, monkeypatch):
    """Scan each sequence as a whole, or cut into as many segments as there are chunks."""
    monkeypatch.setattr(scan_triton, "PROGRAMS", request.param)
    monkeypatch.setattr(scan_triton, "FEWEST", 2)


scans_both_ways = pytest.mark.usefixtures("programs")


@scans_both_ways
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), pytest.param((5, 13), marks=pytest.mark.slow), (3, 43)])
def test_scan_equals_the_reference(grid):
    compare(scan_inputs(batch=1, grid=grid, scans=4 if grid[1] < 20 else 1), TRITON)


@scans_both_ways
@pytest.mark.parametrize(
    ("dim", "state"),
    [pytest.param(1, 1, marks=pytest.mark.slow), (33, 5), pytest.param(65, 16, marks=pytest.mark.slow)],
)
def test_any_width_and_state(dim, state):
    compare(scan_inputs(batch=1, grid=(2, 34), scans=1, dim=dim, state=state), TRITON)


@scans_both_ways
def test_optional_arguments_and_extreme_steps():
    inputs = scan_inputs(batch=1, grid=(6, 12), scans=1) | dict(D=None, delta_bias=None)
    inputs["delta"] = torch.linspace(-40, 40, inputs["delta"].numel(), dtype=torch.float64).view_as(inputs["delta"])
    inputs["delta"].requires_grad_()
    compare(inputs, TRITON)


@pytest.mark.parametrize(("before", "scans"), [(2, 4), (3, 1)])
def test_parts_of_a_projection(before, scans, monkeypatch):
    """B and C, slices of a projection's output, are read in place, or copied if not aligned to 64-bit words."""
    monkeypatch.setenv("ARM_SCAN_BACKEND", "triton")
    inputs = scan_inputs(batch=2, grid=(2, 3), scans=scans, state=4)
    inputs = {n: v.detach() for n, v in cast(inputs, torch.float32).items()}
    output = torch.full((scans, 2, 6, before + 8), torch.nan)
    parts = {n: output[..., start:][..., :4].transpose(0, 1) for n, start in (("B", before), ("C", before + 4))}
    for name, part in parts.items():
        part.copy_(inputs[name])
    low, high = (scan_gradients(inputs | more) for more in (parts, {}))
    assert all(torch.equal(low[name], high[name]) for name in low)


@pytest.mark.parametrize("length", [5, pytest.param(66, marks=pytest.mark.slow)])
@scans_both_ways
def test_a_shared_map_and_the_sum_over_directions(length):
    """Three directions, so that a mean instead of the sum is not hidden by a power of two."""
    inputs = scan_inputs(batch=2, grid=(1, length), scans=4, dim=3, state=1)
    inputs = {n: v[:, :3] if n in ("u", "delta", "B", "C") else v[:3] for n, v in inputs.items()}
    inputs = {n: v.detach() for n, v in cast(inputs, torch.float32).items()}
    results = {}
    for backend, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        given = cast(inputs, dtype)
        one = given["u"][:, 0].detach().contiguous().requires_grad_()
        shared = given | dict(u=one.unsqueeze(1).expand(-1, 3, -1, -1))
        y = cross_scan(**shared, reduce="sum", backend=backend)
        results[backend] = y, gradients(y, given | dict(u=one))
    assert_close(results["triton"][0], results["reference"][0], 3e-6)
    for name, grad in results["triton"][1].items():
        assert_close(grad, results["reference"][1][name], 1e-5)


@scans_both_ways
def test_half_precision_in_and_out():
    inputs = {n: v.detach() for n, v in cast(scan_inputs(batch=1, grid=(3, 25), scans=1), torch.float32).items()}
    expected = cross_scan(**inputs, backend="reference")
    low = inputs | {n: inputs[n].half() for n in ("u", "delta", "B", "C")}
    result = cross_scan(**low, backend="triton")
    assert result.dtype == torch.float16
    assert (result.float() - expected).abs().max() < 1e-2 * expected.abs().max()


@pytest.mark.slow
def test_two_runs_are_bit_equal(monkeypatch):
    monkeypatch.setattr(scan_triton, "PROGRAMS", 10**6)  # segments
    monkeypatch.setattr(scan_triton, "FEWEST", 2)
    inputs = cast(scan_inputs(batch=1, grid=(4, 20), scans=1), torch.float32)
    first, second = (gradients(cross_scan(**inputs, backend="triton"), inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("dim", "taps", "grid"), [(5, 4, (5, 9)), (65, 2, (1, 3)), (3, 4, (1, 2))])
def test_convolution(dim, taps, grid):
    x, weight, bias = torch.randn(2, grid[0] * grid[1], dim), torch.randn(4, dim, taps), torch.randn(4, dim)
    orders, exact = scan_orders(*grid), [v.double().requires_grad_() for v in (x, weight, bias)]
    expected = cross_conv(*exact, orders)
    torch.testing.assert_close(
        conv_triton.conv_forward(x, weight, bias, orders).double(), expected, atol=1e-5, rtol=1e-5
    )
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * grad).sum(), exact)
    for result, value in zip(conv_triton.conv_backward(grad.float(), x, weight, bias, orders), wanted, strict=True):
        torch.testing.assert_close(result.double(), value, atol=1e-5 * value.abs().max().item(), rtol=1e-5)


def test_a_scan_with_a_gate():
    inputs = {n: v.detach() for n, v in cast(scan_inputs(batch=1, grid=(2, 3), scans=1), torch.float32).items()}
    gate, given = torch.randn_like(inputs["u"][:, 0]), ScanInputs(*inputs.values())
    plain, gated = (scan_triton.scan_forward(given, True, "mean", False, False, g)[0] for g in (None, gate))
    assert torch.equal(gated, gate_triton.gate_forward(plain, gate))


@pytest.mark.parametrize("shape", [(2, 9, 5), (1, 3, 300)])
def test_gate(shape):
    """z is a slice of a projection's output, as in the mixer."""
    x, (_, z), grad = torch.randn(shape), torch.randn(*shape[:2], 2 * shape[2]).chunk(2, dim=2), torch.randn(shape)
    exact = [v.double().requires_grad_() for v in (x, z)]
    expected = exact[0] * torch.nn.functional.silu(exact[1])
    torch.testing.assert_close(gate_triton.gate_forward(x, z).double(), expected, atol=1e-6, rtol=1e-6)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    before = x.clone(), z.clone()
    halves = torch.cat([grad, torch.full_like(grad, torch.nan)], -1).chunk(2, -1)  # over `grad`, and beside it
    own = gate_triton.gate_backward(grad, x, z)
    assert own[0] is not grad
    for results in (own, gate_triton.gate_backward(halves[0], x, z, *halves)):
        for result, value in zip(results, wanted, strict=True):
            torch.testing.assert_close(result.double(), value, atol=1e-6, rtol=1e-6)
        assert torch.equal(x, before[0]) and torch.equal(z, before[1])
    assert results[0] is halves[0] and results[1] is halves[1]


@pytest.mark.parametrize("width", [5, 300])
@pytest.mark.parametrize("of_sum", [False, True], ids=["alone", "after a sum"])
@pytest.mark.parametrize("kind", ["layer", "layer without bias", "rms"])
def test_norm(width, of_sum, kind):
    shapes = ((2, 4, width), (2, 4, width), (width,), *([(width,)] if kind == "layer" else []))
    values = [torch.randn(shape) for shape in shapes]
    grad, grad_total = torch.randn(2, 2, 4, width)
    x, branch, *parameters = exact = [v.double().requires_grad_() for v in values]
    total = x + branch if of_sum else x
    function = torch.nn.functional.rms_norm if kind == "rms" else torch.nn.functional.layer_norm
    expected = function(total, (width,), *parameters, eps=1e-5)
    objective = (expected * grad).sum() + ((total * grad_total).sum() if of_sum else 0)
    wanted = torch.autograd.grad(objective, exact, allow_unused=not of_sum)
    x, branch, weight, bias = [*values, None][:4]
    centered = kind != "rms"
    given = (x, branch if of_sum else None, weight, bias, 1e-5, centered, torch.float32)
    total, out, *rows = norm_triton.norm_forward(*given)
    assert_close(out.double(), expected, 1e-6)
    more = (grad_total if of_sum else None, total, weight, *rows, centered, torch.float64 if of_sum else None)
    for got, want in zip(norm_triton.norm_backward(grad, *more), wanted):
        assert (got is None) == (want is None)
        assert got is None or (got.double() - want).abs().max() < 1e-5 * want.abs().max()


@scans_both_ways
@pytest.mark.parametrize(("images", "grid"), [(2, (2, 3)), pytest.param(1, (2, 35), marks=pytest.mark.slow)])
def test_fused_block(images, grid, monkeypatch):
    """Compare the fused autograd functions, which recompute what they need, with the separate operators."""
    torch.manual_seed(0)
    block, orders = Block(10, scans=1, drop_path=0.0, num_blocks=12), scan_orders(*grid, 1)
    inputs = [torch.randn(images, grid[0] * grid[1], 10).requires_grad_(), *block.parameters()]
    exact = block(inputs[0], orders)
    grad = torch.randn_like(exact)
    wanted = torch.autograd.grad(exact, inputs, grad, retain_graph=True)
    assert any("cross_scan" in name for name in names(exact.grad_fn))
    monkeypatch.setenv("ARM_SCAN_BACKEND", "triton")
    result = run_checkpointed(block, inputs[0], orders, with_cp="selective")
    found = names(result.grad_fn)
    assert {"_MambaInnerBackward", "_GatedLinearBackward"} <= found and not any("cross_scan" in n for n in found)
    assert_close(result, exact, 1e-6)
    for got, want in zip(torch.autograd.grad(result, inputs, grad), wanted, strict=True):
        assert_close(got, want, 1e-5)
    with torch.no_grad():
        assert_close(block(inputs[0], orders), exact, 1e-6)


FROZEN = {"nothing": (), "input": ("x",), "gate": ("w1.weight",), "products": ("w1.weight", "w2.weight", "w3.weight")}


@pytest.mark.parametrize("frozen", FROZEN)
def test_swiglu_under_autocast(frozen):
    """One function with the results and gradients of the three layers, for which a float64 copy is the measure."""
    torch.manual_seed(0)
    mlp, x = SwiGLU(24), torch.randn(2, 5, 24)
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    exact, grad = copy.deepcopy(mlp).double(), torch.randn(2, 5, 24)
    leaves = [dict(x=tokens, **dict(module.named_parameters())) for module, tokens in ((mlp, x), (exact, x.double()))]
    trained = [name for name in leaves[0] if name not in FROZEN[frozen]]
    for tensors in leaves:
        for name, tensor in tensors.items():
            tensor.requires_grad_(name in trained)
    y = exact.w3(exact.w2(leaves[1]["x"]) * torch.nn.functional.silu(exact.w1(leaves[1]["x"])))
    wanted = torch.autograd.grad(y, [leaves[1][name] for name in trained], grad.double())
    with torch.autocast("cpu", torch.bfloat16):
        result = mlp(x)
        with torch.no_grad():
            assert torch.equal(mlp(x), result) and result.dtype == torch.bfloat16
    assert type(result.grad_fn).__name__ == "_SwiGLUBackward"
    close_enough(result, y, 1e-2)
    for got, want in zip(torch.autograd.grad(result, [leaves[0][name] for name in trained], grad), wanted, strict=True):
        close_enough(got, want, 2e-2)
        assert got.dtype == torch.float32


def close_enough(result, expected, tolerance) -> None:
    assert (result.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


def test_swiglu_calls_layers_that_are_not_plain_or_need_no_conversion():
    torch.manual_seed(0)
    mlp, x, seen = SwiGLU(24), torch.randn(2, 5, 24).requires_grad_(), []
    assert "_SwiGLUBackward" not in names(mlp(x).grad_fn)  # without autocast
    with torch.autocast("cpu", torch.bfloat16):
        expected = mlp(x)
        handle = mlp.w2.register_forward_hook(lambda *_: seen.append(1))
        hooked = mlp(x)
        handle.remove()
        held = copy.deepcopy(mlp).bfloat16()(x)
        part = copy.deepcopy(mlp)
        part.w3.bfloat16()
        mixed = part(x)
    assert seen == [1] and "_SwiGLUBackward" in names(expected.grad_fn)
    with pytest.raises(RuntimeError, match="same dtype"):  # without autocast PyTorch converts nothing
        mlp(x.bfloat16())
    for other in (hooked, held, mixed):
        assert "_SwiGLUBackward" not in names(other.grad_fn)
        close_enough(other, expected, 1e-2)


# Operators of PyTorch that a GPU runs in a launch of their own; what they call is part of it
LAUNCHES = frozenset("_foreach_copy_ add add_ addmm baddbmm_ bmm cat copy_ div_ exp fill_ mean mm mul neg_ sum".split())


def launches(record) -> int:
    """Operators and kernels in a profile that a GPU would launch."""

    def count(event) -> int:
        name = event.name.removeprefix("aten::")
        if name == "kernel" or (name != event.name and name in LAUNCHES):
            return 1
        return sum(map(count, event.cpu_children))

    return sum(count(event) for event in record.events() if event.cpu_parent is None)


def test_launches_of_a_block(monkeypatch):
    """Small batches on a GPU wait for launches from Python; there were 80 before weights were converted together."""

    def launch(*_, **__) -> None:
        with record_function("kernel"):  # and compute nothing
            pass

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    monkeypatch.setattr(scan_triton, "_programs_at_once", lambda device: 10**6)
    monkeypatch.setenv("ARM_SCAN_BACKEND", "triton")
    block, orders = Block(64, scans=4, drop_path=0.0, num_blocks=12), grid_orders(4, 4)
    counts = []
    for _ in range(2):  # the first call validates and looks things up
        x = torch.randn(2, 16, 64).requires_grad_()
        block.zero_grad()
        with profile(activities=[ProfilerActivity.CPU]) as forward, torch.autocast("cpu", torch.bfloat16):
            y = block(x, orders)
        grad = torch.ones_like(y)
        with profile(activities=[ProfilerActivity.CPU]) as backward:
            y.backward(grad)
        counts = [launches(forward), launches(backward)]
    assert counts == [20, 42]
