"""Scan and convolution: equality with the reference loop and between back ends, and behaviour as PyTorch operators."""

import itertools
import types

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from arm_backbone.block import Block
from arm_backbone.ops import cross_conv, cross_scan, dispatch, mamba_inner, resolve_backend
from arm_backbone.ops.cpu import conv as cpu_conv
from arm_backbone.ops.cpu import library as native
from arm_backbone.ops.layout import as_rows
from arm_backbone.ops.library import is_plain
from arm_backbone.ops.triton.device import device_guard
from arm_backbone.scan_order import scan_orders
from tests.helpers.scans import assert_close, cast, compare, gradients, scan_gradients, scan_inputs

# back end, for the CPU kernels with the instruction set -> dtype and tolerance
RUNS = {
    "torch": (torch.float64, 1e-12),
    "cpu avx512": (torch.float32, 3e-6),
    "cpu avx2": (torch.float32, 3e-6),
    "cpu plain": (torch.float32, 3e-6),
}


@pytest.fixture(params=RUNS)
def run(request, monkeypatch):
    """Name, dtype and tolerance of a back end that can run here."""
    backend, _, isa = request.param.partition(" ")
    if backend == "cpu":
        if native.unavailable():
            pytest.skip(native.unavailable())
        monkeypatch.setenv("ARM_CPU_ISA", isa)
        try:
            native.kernels()
        except ValueError as error:
            pytest.skip(str(error))
    return backend, *RUNS[request.param]


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 6), (1, 25), (5, 7), (1, 33), (8, 8), (5, 13)])
@pytest.mark.parametrize("scans", [1, 4])
def test_backends_equal_the_reference(run, grid, scans):
    compare(scan_inputs(grid=grid, scans=scans), run)


SIZES = list(itertools.product([1, 3, 16, 31, 64, 65, 150], [1, 5, 8, 16, 17]))


@pytest.mark.parametrize(
    ("dim", "state", "run"),
    # plain PyTorch has no vectors to fill, so a third of the sizes is enough
    [(*size, run) for i, size in enumerate(SIZES) for run in RUNS if run != "torch" or i % 3 == 0],
    indirect=["run"],
)
def test_any_width_and_state(run, dim, state):
    """Some widths and states fill a kernel's vectors, others leave a remainder."""
    compare(scan_inputs(batch=1, grid=(2, 20), scans=1, dim=dim, state=state), run)


def test_any_permutation_is_an_order(run):
    inputs = scan_inputs(grid=(6, 7), dim=20)
    generator = torch.Generator().manual_seed(3)
    inputs["orders"] = torch.stack([torch.randperm(42, generator=generator) for _ in range(4)])
    compare(inputs, run)


def test_extreme_steps(run):
    """With delta from -40 to 40 before softplus, decays underflow or steps hardly change the state."""
    inputs = scan_inputs(grid=(8, 9), dim=24, state=4)
    spread = torch.linspace(-40, 40, inputs["delta"].numel(), dtype=torch.float64)
    inputs["delta"] = spread[torch.randperm(len(spread))].view_as(inputs["delta"]).requires_grad_()
    compare(inputs, (*run[:2], max(run[2], 1e-9)))  # PyTorch's softplus is the identity above 20


@pytest.mark.parametrize("name", ["u", "delta", "B"])
def test_nan_reaches_the_result(run, name):
    """If clamps inside a kernel turned NaN into a number, a diverged run would continue."""
    backend, dtype, _ = run
    inputs = {n: v.detach() for n, v in cast(scan_inputs(batch=1, grid=(1, 40), scans=1, dim=20), dtype).items()}
    inputs[name][0, 0, 7, 2] = torch.nan
    result = cross_scan(**inputs, backend=backend)
    assert result[:, :7].isfinite().all() and result[:, 7:].isnan().any(2).all()


@pytest.mark.xdist_group("long sequences")  # the runs share one reference, which takes most of the time
def test_long_sequences(run):
    """Over 16,384 tokens, small errors of a decay would accumulate."""
    inputs = scan_inputs(batch=1, grid=(128, 128), scans=1, dim=5, state=3)
    inputs["A"] = (inputs["A"].detach() / 100).requires_grad_()
    compare(inputs, (run[0], run[1], max(run[2], 1e-10)))


def test_optional_arguments(run):
    inputs = scan_inputs() | dict(D=None, delta_bias=None, delta_softplus=False)
    inputs["delta"] = (inputs["delta"].detach().abs() / 4).requires_grad_()
    compare(inputs, run)


def test_empty_batch(run):
    compare(scan_inputs(batch=0), run)


def test_gradients_of_any_subset(run):
    backend, dtype, tolerance = run
    inputs = cast(scan_inputs(), dtype)
    expected = gradients(cross_scan(**inputs, backend=backend), inputs)
    for name in expected:
        alone = {n: v.detach() if torch.is_tensor(v) else v for n, v in inputs.items()}
        alone[name] = inputs[name]
        (grad,) = gradients(cross_scan(**alone, backend=backend), {name: inputs[name]}).values()
        assert_close(grad, expected[name], tolerance)


def test_strided_inputs_and_two_uses_in_one_graph(run):
    backend, dtype, tolerance = run
    inputs = cast(scan_inputs(), dtype)
    strided = dict(inputs)
    for name in ("u", "delta", "B", "C"):
        strided[name] = inputs[name].transpose(2, 3).contiguous().transpose(2, 3)
        assert not strided[name].is_contiguous()
    one = cross_scan(**inputs, backend=backend)
    two = cross_scan(**strided, backend=backend)
    assert torch.equal(one, two)
    single = gradients(one, inputs)
    double = gradients(cross_scan(**inputs, backend=backend) + cross_scan(**strided, backend=backend), inputs)
    for name, grad in double.items():
        assert_close(grad, 2 * single[name], tolerance)


def test_two_runs_are_bit_equal(run):
    backend, dtype, _ = run
    inputs = cast(scan_inputs(batch=3, grid=(9, 9), dim=70), dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = (gradients(cross_scan(**inputs, backend=backend), inputs) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_functional_call_and_export(run):
    backend, dtype, tolerance = run
    inputs = cast(scan_inputs(grid=(4, 4)), dtype)

    class Scan(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.A = torch.nn.Parameter(inputs["A"].detach().clone())

        def forward(self, u):
            return cross_scan(**inputs | dict(u=u, A=self.A), backend=backend)

    module, u = Scan(), inputs["u"].detach()
    expected = module(u)
    assert torch.equal(torch.func.functional_call(module, dict(A=inputs["A"]), (u,)), expected)
    exported = torch.export.export(module, (u,)).module()
    assert_close(exported(u), expected, tolerance)


def test_compiles_without_a_graph_break(run):
    backend, dtype, tolerance = run
    inputs = cast(scan_inputs(grid=(4, 4)), dtype)
    weight, bias = torch.randn(4, 6, 4, dtype=dtype), torch.randn(4, 6, dtype=dtype)

    def scan(u, delta):
        inner = cross_conv(u[:, 0], weight, bias, inputs["orders"])
        # not with "|": Dynamo of torch 2.7 cannot trace it
        y = cross_scan(**{**inputs, "u": u + inner, "delta": delta}, backend=backend)
        return y.sin() + cross_scan(**{**inputs, "u": u, "delta": delta})  # the default back end

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    expected, result = scan(inputs["u"], inputs["delta"]), compiled(inputs["u"], inputs["delta"])
    assert_close(result, expected, tolerance)
    wanted = gradients(expected, inputs)
    for name, grad in gradients(result, inputs).items():
        assert_close(grad, wanted[name], tolerance)


def test_block_under_autocast_compiles_and_runs_on_meta():
    block, orders, x = Block(32, scans=4, drop_path=0.0, num_blocks=12), scan_orders(3, 4), torch.randn(2, 12, 32)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert_close(compiled(x, orders), block(x, orders), 1e-2)
    assert block.to("meta")(x.to("meta"), orders.to("meta")).shape == x.shape


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_native_convolution():
    generator = torch.Generator().manual_seed(0)
    for dim, taps, grid in ((1, 1, (2, 3)), (20, 2, (3, 3)), (70, 4, (5, 9)), (64, 4, (1, 2)), (33, 8, (6, 6))):
        shapes = dict(x=(2, grid[0] * grid[1], dim), weight=(4, dim, taps), bias=(4, dim))
        exact = {
            n: torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for n, s in shapes.items()
        }
        single = cast(exact, torch.float32)
        orders = scan_orders(*grid)
        expected, result = cross_conv(**exact, orders=orders), cross_conv(**single, orders=orders)
        assert_close(result, expected, 1e-6)
        wanted = gradients(expected, exact)
        for name, grad in gradients(result, single).items():
            assert_close(grad, wanted[name], 3e-6)


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
@pytest.mark.parametrize("isa", ["avx512", "avx2", "plain"])
def test_native_kernels_read_and_write_bfloat16(isa, monkeypatch):
    """Results equal those of float32 inputs, rounded once; the convolution also reads strided rows."""
    monkeypatch.setenv("ARM_CPU_ISA", isa)
    try:
        native.kernels()
    except ValueError as error:
        pytest.skip(str(error))
    inputs = {n: v.detach() for n, v in cast(scan_inputs(grid=(5, 9), dim=70), torch.float32).items()}
    inputs |= {n: inputs[n].bfloat16() for n in ("u", "delta", "B", "C")}
    exact = {n: v.float() if v.is_floating_point() else v for n, v in inputs.items()}
    result, expected = cross_scan(**inputs), cross_scan(**exact)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected.bfloat16(), atol=1e-6, rtol=2**-7)
    low, high = (scan_gradients(given) for given in (inputs, exact))
    for name, grad in low.items():
        assert grad.dtype == inputs[name].dtype
        torch.testing.assert_close(grad, high[name].to(grad.dtype), atol=2e-5 * high[name].abs().max(), rtol=2**-7)
    both = torch.randn(2, 45, 140).bfloat16()
    x, weight, bias = both[..., :70], torch.randn(4, 70, 4), torch.randn(4, 70)
    assert not x.is_contiguous()
    result = cross_conv(x, weight, bias, inputs["orders"])
    expected = cross_conv(x.float(), weight, bias, inputs["orders"])
    torch.testing.assert_close(result, expected.bfloat16(), atol=1e-6, rtol=2**-7)
    grad, weight, bias = torch.randn(2, 4, 45, 70).bfloat16(), weight.bfloat16(), bias.bfloat16()
    low = cpu_conv.conv_backward(grad, x, weight, bias, inputs["orders"])
    high = cpu_conv.conv_backward(*(v.float() for v in (grad, x, weight, bias)), inputs["orders"])
    for half, single in zip(low, high):
        torch.testing.assert_close(half, single.bfloat16(), atol=1e-6, rtol=2**-7)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.00390625, 3.3895e38])  # a tie, and an overflow
    x = special.repeat(4).view(1, 1, 20)
    weight = torch.zeros(1, 20, 4).index_fill_(2, torch.tensor([3]), 1)  # the convolution is then SiLU alone
    order = torch.zeros(1, 1, dtype=torch.long)
    single, half = (
        cpu_conv.conv_forward(v, weight, torch.zeros(1, 20), order) for v in (x.bfloat16().float(), x.bfloat16())
    )
    torch.testing.assert_close(half, single.bfloat16(), equal_nan=True)


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
@pytest.mark.parametrize("types", [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("batch", [1, 2])
def test_native_scan_reads_parts_of_a_projection(types, batch):
    """B and C are slices of a projection's output, read in place, in float32 or bfloat16."""
    inputs = {n: v.detach() for n, v in cast(scan_inputs(batch=batch), torch.float32).items()}
    state = inputs["A"].shape[2]
    for name, dtype, start in zip("BC", types, (3, 3 + state)):
        images, directions, length, _ = inputs[name].shape
        output = torch.full((directions, images, length, 2 * state + start), torch.nan, dtype=getattr(torch, dtype))
        part = output[..., start : start + state].transpose(0, 1)
        part.copy_(inputs[name])
        assert as_rows(part.transpose(0, 1))[1] == 2 * state + start  # not copied
        inputs[name] = part
    together = inputs | {n: inputs[n].clone(memory_format=torch.contiguous_format) for n in "BC"}
    assert torch.equal(cross_scan(**inputs), cross_scan(**together))
    low, high = scan_gradients(inputs), scan_gradients(together)
    assert all(torch.equal(low[name], high[name]) for name in low)


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_native_bfloat16_scan_of_a_long_sequence():
    """A thread sums the directions in float32, which fits its memory for only some of the channels at a time."""
    inputs = {
        n: v.detach()
        for n, v in cast(scan_inputs(batch=1, grid=(1, 40000), dim=70, state=2, scans=1), torch.float32).items()
    }
    inputs |= {n: inputs[n].bfloat16() for n in ("u", "delta", "B", "C")}
    exact = {n: v.float() if v.is_floating_point() else v for n, v in inputs.items()}
    torch.testing.assert_close(cross_scan(**inputs), cross_scan(**exact).bfloat16(), atol=1e-6, rtol=2**-7)


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_any_number_of_threads():
    """Channel groups are split between threads, unevenly if their number is not a multiple of the threads'."""
    inputs = cast(scan_inputs(batch=1, grid=(5, 9), dim=150), torch.float32)
    results = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            y = cross_scan(**inputs)
            results[threads] = y, gradients(y, inputs)
    finally:
        torch.set_num_threads(before)
    for y, grads in results.values():
        assert torch.equal(y, results[1][0])
        for name, grad in grads.items():
            assert_close(grad, results[1][1][name], 1e-6)


def test_back_ends_that_cannot_run_say_why(monkeypatch):
    inputs = cast(scan_inputs(), torch.float64)
    with pytest.raises(ValueError, match="backend='cpu' cannot run: it computes in float32"):
        cross_scan(**inputs, backend="cpu")
    monkeypatch.setattr(native, "unavailable", lambda: "the CPU kernels are not built; install a compiler")
    with pytest.raises(ValueError, match="cannot run: the CPU kernels are not built; install a compiler"):
        cross_scan(**cast(inputs, torch.float32), backend="cpu")
    dispatch._warn_slow.cache_clear()
    with pytest.warns(UserWarning, match="plain PyTorch, .* slower: the CPU kernels are not built"):
        cross_scan(**cast(inputs, torch.float32))


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_an_instruction_set_that_is_not_there(monkeypatch):
    monkeypatch.setenv("ARM_CPU_ISA", "neon")
    with pytest.raises(ValueError, match="ARM_CPU_ISA='neon' cannot run here; give one of plain"):
        cross_scan(**cast(scan_inputs(), torch.float32), backend="cpu")


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_kernels_flush_tiny_numbers_for_themselves_alone():
    """Denormals would slow the kernels down, so they are flushed to 0; PyTorch keeps them in later operations."""
    inputs = {n: v.detach() for n, v in cast(scan_inputs(batch=1, grid=(1, 200), scans=1), torch.float32).items()}
    inputs["B"][:, :, 1:] = 0  # no input after the first token
    inputs["D"].zero_()
    inputs["A"].fill_(-1)
    inputs["delta"].fill_(0)
    inputs["delta_bias"].fill_(0)  # softplus(0) = log 2: the state is halved at every token
    y = cross_scan(**inputs, backend="cpu")[0, :, 0].abs()
    assert y[1] > 0 and ((y == 0) | (y > 1e-39)).all() and y[-1] == 0
    assert (torch.full((64,), 1e-40) * 0.5).min() > 0


def test_slabs_do_not_change_the_result(monkeypatch):
    inputs = scan_inputs(batch=5)
    whole = cross_scan(**inputs)
    expected = gradients(whole, inputs)
    monkeypatch.setattr("arm_backbone.ops.pytorch.scan.SLAB", 1)  # one image at a time
    sliced = cross_scan(**inputs)
    assert_close(sliced, whole, 1e-14)
    for name, grad in gradients(sliced, inputs).items():
        assert_close(grad, expected[name], 1e-12)


def test_four_scans_equal_four_single_scans():
    """The result depends neither on how directions are batched nor on which images share a batch."""
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
    assert (result.float() - expected).abs().max() < 1e-2 * expected.abs().max()


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
    """Schema, fake kernels and autograd registration are as torch.compile and torch.export need them."""
    inputs = scan_inputs(grid=(3, 6), dim=4)
    for backend in ("torch", "cpu"):
        inputs = cast(inputs, RUNS["cpu plain" if backend == "cpu" else backend][0])
        arguments = [inputs[n] for n in ("u", "delta", "A", "B", "C", "D", "delta_bias", "orders")]
        torch.library.opcheck(torch.ops.arm.cross_scan, (*arguments, True, "mean", backend, True))
        without = [x.detach() for x in arguments]
        torch.library.opcheck(torch.ops.arm.cross_scan, (*without, True, "sum", backend, False))
    x = torch.randn(2, 18, 4, requires_grad=True)
    weight, bias = torch.randn(4, 4, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.arm.cross_conv, (x, weight, bias, inputs["orders"]))


def test_operators_of_the_backward_follow_them_too():
    inputs = {n: v.detach() for n, v in scan_inputs(grid=(3, 6), dim=4).items()}
    for backend in ("torch", "cpu"):
        inputs = {n: v.detach() for n, v in cast(inputs, RUNS["cpu plain" if backend == "cpu" else backend][0]).items()}
        arguments = [inputs[n] for n in ("u", "delta", "A", "B", "C", "D", "delta_bias", "orders")]
        y, states = torch.ops.arm.cross_scan(*arguments, True, "mean", backend, True)
        torch.library.opcheck(torch.ops.arm.cross_scan_backward, (y, *arguments, True, "mean", backend, states))
    x, weight, bias = torch.randn(2, 18, 4), torch.randn(4, 4, 4), torch.randn(4, 4)
    grad = torch.ops.arm.cross_conv(x, weight, bias, inputs["orders"])
    torch.library.opcheck(torch.ops.arm.cross_conv_backward, (grad, x, weight, bias, inputs["orders"]))


def test_double_backward_is_an_error():
    """Otherwise a gradient penalty would silently be 0."""
    inputs = scan_inputs()
    x, weight, bias = (torch.randn(*s).requires_grad_() for s in ((2, 35, 6), (4, 6, 4), (4, 6)))
    block = Block(6, scans=4, drop_path=0.0, num_blocks=12)
    for result, leaf in (
        (cross_scan(**inputs), inputs["u"]),
        (cross_conv(x, weight, bias, inputs["orders"]), x),
        (block(x, inputs["orders"]), x),
    ):
        with pytest.raises(RuntimeError, match="do not support double backward"):
            torch.autograd.grad(result.sum(), leaf, create_graph=True)


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
        (dict(u=torch.zeros(2, 3, 35, 6)), "incompatible shapes"),
        (dict(C=torch.zeros(2, 4, 35, 3, dtype=torch.int32)), "C must be a real floating-point"),
        (dict(backend="cuda"), "backend='cuda'.*reference, torch"),
    ],
)
def test_bad_arguments_are_named(change, message):
    inputs = {n: v.detach().float() if v.is_floating_point() else v for n, v in scan_inputs().items()}
    with pytest.raises(ValueError, match=message):
        cross_scan(**inputs | change)


INNER = dict(
    x=(2, 9, 6),
    conv_weight=(4, 6, 3),
    conv_bias=(4, 6),
    x_proj_weight=(4, 2 + 2 * 5, 6),
    dt_proj_weight=(4, 6, 2),
    A_log=(4, 6, 5),
    D=(4, 6),
    delta_bias=(4, 6),
)


@pytest.mark.parametrize("name", [*INNER, "orders"])
def test_wrong_shapes_of_mamba_inner_are_named(name):
    """`mamba_inner` calls kernels without the operators' checks; with wrong shapes they would read wrong memory."""
    inputs = {n: torch.randn(shape) for n, shape in INNER.items()} | dict(orders=scan_orders(3, 3))
    assert mamba_inner(**inputs).shape == (2, 9, 6)
    inputs[name] = torch.cat([inputs[name], inputs[name][:, :1]], dim=1)
    named = {"x": "orders", "conv_weight": "x", "dt_proj_weight": "dt_proj_weight"}.get(name, name)
    with pytest.raises(ValueError, match=f"^{named} has shape .* it must be"):
        mamba_inner(**inputs)


def test_orders_of_another_dtype_than_int64_are_refused():
    """A kernel would read two int32 numbers as one int64."""
    inputs = {n: torch.randn(shape) for n, shape in INNER.items()} | dict(orders=scan_orders(3, 3).int())
    with pytest.raises(ValueError, match="orders must be int64, not torch.int32"):
        mamba_inner(**inputs)
    with pytest.raises(ValueError, match="orders must be int64, not torch.int32"):
        cross_conv(*(inputs[n] for n in ("x", "conv_weight", "conv_bias", "orders")))


def test_changed_layers_are_not_plain():
    """A fused function that uses the weights of a layer would bypass its hooks or its replaced forward."""
    assert is_plain(nn.Linear(3, 4), nn.Linear)
    hooked, replaced = nn.Linear(3, 4), nn.Linear(3, 4)
    hooked.register_forward_hook(lambda *_: None)
    replaced.forward = lambda x: x
    reparametrised = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    for changed in (hooked, replaced, reparametrised, nn.LazyLinear(4), nn.Bilinear(3, 3, 4)):
        assert not is_plain(changed, nn.Linear)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not is_plain(nn.Linear(3, 4), nn.Linear)
    finally:
        handle.remove()


def test_kernels_run_on_their_tensors_device(monkeypatch):
    """Triton launches on the current GPU, which may be another one."""
    used = []

    class Device:
        def __init__(self, device) -> None:
            self.device = device

        def __enter__(self) -> None:
            used.append(self.device)

        def __exit__(self, *_) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    here, there = (types.SimpleNamespace(device=torch.device("cuda", i)) for i in (1, 0))
    run = device_guard(lambda x, y, z: (x, y, z))
    assert run(here, 2, z=3) == (here, 2, 3) and used == []
    assert run(there, 2, z=3) == (there, 2, 3) and used == [torch.device("cuda", 0)]
    assert run(torch.zeros(1), 2, z=3)[1:] == (2, 3) and len(used) == 1


def test_backend_by_environment(monkeypatch):
    u = torch.device("cpu"), torch.float32
    monkeypatch.setenv("ARM_SCAN_BACKEND", "reference")
    assert resolve_backend(*u) == "reference"
    assert resolve_backend(*u, "torch") == "torch"
    monkeypatch.setenv("ARM_SCAN_BACKEND", "fast")
    with pytest.raises(ValueError, match="ARM_SCAN_BACKEND='fast'"):
        resolve_backend(*u)


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


def test_kernels_of_other_sources_are_refused(monkeypatch):
    """After an update without a new build, old kernels would access wrong memory."""
    library = type("Library", (), {"arm_layout": lambda self, which: 8})()
    monkeypatch.setattr(native, "_library", lambda: library)
    monkeypatch.setattr(native, "LIBRARY", native.Path(__file__))  # an existing file
    assert "other sources; rebuild it: pip install -e ." in native.unavailable.__wrapped__()


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_a_gradient_in_mamba_ssms_layout():
    """Bit-equal whether the incoming gradient lies as (B, L, D) or, as after selective_scan, as (B, D, L)."""
    inputs = cast(scan_inputs(batch=3, grid=(7, 9), dim=70), torch.float32)
    leaves = [inputs[name].detach().requires_grad_() for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    y = cross_scan(*leaves, inputs["orders"])
    grad = torch.randn_like(y)
    lies_otherwise = grad.transpose(1, 2).contiguous().transpose(1, 2)
    assert grad.is_contiguous() and not lies_otherwise.is_contiguous()
    expected = torch.autograd.grad(y, leaves, grad, retain_graph=True)
    for found, wanted in zip(torch.autograd.grad(y, leaves, lies_otherwise), expected, strict=True):
        assert torch.equal(found, wanted)
