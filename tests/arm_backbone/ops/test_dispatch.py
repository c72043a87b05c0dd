"""The choice of the back end, the interface that all back ends share, and the validation of orders."""

import inspect
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from arm_backbone.mixer import MambaMixer
from arm_backbone.ops import (
    ScanOrders,
    add_layer_norm,
    cross_conv,
    cross_scan,
    dispatch,
    layer_norm,
    mamba_inner,
    resolve_backend,
    scan_backend,
)
from arm_backbone.ops.cpu import library
from arm_backbone.ops.pytorch import gate, norm
from arm_backbone.ops.pytorch import scan as torch_scan
from arm_backbone.ops.scan_inputs import ScanInputs
from arm_backbone.scan_order import grid_orders, scan_orders
from tests.helpers.scans import assert_close, cast, compare, gradients, scan_inputs

PROTOCOLS = {
    "scan": dispatch.ScanKernels,
    "conv": dispatch.ConvKernels,
    "gate": dispatch.GateKernels,
    "norm": dispatch.NormKernels,
}
BACKENDS = [
    pytest.param(("torch", torch.float64, 1e-12), id="torch"),
    pytest.param(
        ("cpu", torch.float32, 3e-6),
        id="cpu",
        marks=pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable())),
    ),
]


def signature(function) -> list:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    return [(p.name, p.annotation, p.default) for p in parameters]


@pytest.mark.parametrize("part", PROTOCOLS)
@pytest.mark.parametrize("folder", dispatch._FOLDERS.values())
def test_back_ends_have_one_signature(folder, part):
    if folder == "triton":
        pytest.importorskip("triton")
    module = import_module(f"arm_backbone.ops.{folder}.{part}")
    for name, method in vars(PROTOCOLS[part]).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            assert signature(getattr(module, name)) == signature(method), f"{folder}/{part}.py {name}"


@pytest.mark.parametrize("name", ["reference", "mamba_ssm"])
def test_differentiable_scans_have_one_signature(name):
    module = dispatch.differentiable_scan(name)
    assert signature(module.scan) == signature(dispatch.DifferentiableScan.scan)


def test_precedence_of_argument_context_manager_and_environment(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setenv("ARM_SCAN_BACKEND", "reference")
    assert resolve_backend(cpu, torch.float32) == "reference"
    with scan_backend("torch"):
        assert resolve_backend(cpu, torch.float32) == "torch"
        assert resolve_backend(cpu, torch.float32, "reference") == "reference"
        with pytest.raises(KeyError), scan_backend("reference"):
            raise KeyError
        assert resolve_backend(cpu, torch.float32) == "torch"
        with scan_backend("auto"):
            assert resolve_backend(cpu, torch.float64) == "torch"
    assert resolve_backend(cpu, torch.float32) == "reference"


def test_unknown_back_ends_are_named():
    with pytest.raises(ValueError, match=r"scan_backend\('cuda'\) is not a scan back end; give auto, reference"):
        with scan_backend("cuda"):
            pass
    with pytest.raises(ValueError, match="backend='cuda' is not a scan back end"):
        cross_scan(**scan_inputs(), backend="cuda")
    with scan_backend("mamba_ssm"), pytest.raises(ValueError, match="scan_backend='mamba_ssm' cannot run"):
        cross_scan(**cast(scan_inputs(), torch.float32))


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("scans", [1, 3, 4])
def test_the_sum_over_directions(run, scans):
    backend, dtype, tolerance = run
    inputs = scan_inputs(scans=4)
    keep = slice(scans)
    inputs = {n: v[:, keep] if n in ("u", "delta", "B", "C") else v[keep] for n, v in inputs.items()}
    inputs = {n: v.detach().requires_grad_() if v.is_floating_point() else v for n, v in inputs.items()}
    exact, given = cast(inputs, torch.float64), cast(inputs, dtype)
    expected = scans * cross_scan(**exact, backend="reference")
    result = cross_scan(**given, reduce="sum", backend=backend)
    assert_close(result, expected, tolerance)
    wanted = gradients(expected, exact)
    for name, grad in gradients(result, given).items():
        assert_close(grad, wanted[name], 3 * tolerance)
    with pytest.raises(ValueError, match="reduce='max': give 'mean' or 'sum'"):
        cross_scan(**given, reduce="max")


@pytest.mark.parametrize("run", BACKENDS)
def test_a_map_shared_by_all_directions_is_not_copied(run, monkeypatch):
    """One map expanded over K gives the same result and gradient as K copies."""
    backend, dtype, tolerance = run
    inputs = cast(scan_inputs(dim=70), dtype)
    one = inputs["u"][:, 0].detach().contiguous().requires_grad_()
    shared = inputs | dict(u=one.unsqueeze(1).expand(-1, 4, -1, -1))
    copies = inputs | dict(u=shared["u"].detach().contiguous().requires_grad_())
    result, expected = cross_scan(**shared, backend=backend), cross_scan(**copies, backend=backend)
    assert torch.equal(result, expected)
    (grad,) = gradients(result, dict(u=one)).values()
    assert_close(grad, gradients(expected, dict(u=copies["u"]))["u"].sum(1), tolerance)
    if backend == "cpu":
        from arm_backbone.ops.cpu.scan import _Packed
        from arm_backbone.ops.scan_inputs import ScanInputs

        packed = _Packed(ScanInputs(**shared), True, "mean", half=False)
        assert packed.u.data_ptr() == one.data_ptr()


@pytest.mark.parametrize("run", BACKENDS)
def test_a_state_of_one_number(run):
    compare(scan_inputs(state=1), run)


WRONG_ORDERS = {
    "one too large": lambda o: o.index_fill_(1, torch.tensor([3]), 35),
    "negative": lambda o: o.index_fill_(1, torch.tensor([3]), -1),
    "huge": lambda o: o.index_fill_(1, torch.tensor([3]), 10**8),
    "twice the same": lambda o: o.index_copy_(1, torch.tensor([3]), o[:, 4:5]),
}


@pytest.mark.parametrize("wrong", WRONG_ORDERS)
def test_orders_that_are_not_permutations_are_refused(wrong):
    orders = WRONG_ORDERS[wrong](scan_orders(5, 7).clone())
    inputs = cast(scan_inputs(), torch.float32) | dict(orders=orders)
    x, weight, bias = torch.randn(2, 35, 6), torch.randn(4, 6, 4), torch.randn(4, 6)
    mixer = MambaMixer(6)
    for call in (
        lambda: cross_scan(**inputs),
        lambda: cross_conv(x, weight, bias, orders),
        lambda: mixer(x, orders),
        lambda: ScanOrders(orders),
    ):
        with pytest.raises(ValueError, match=r"orders\[0\] is not a permutation of the 35 tokens"):
            call()


def test_orders_of_a_wrong_kind():
    orders = scan_orders(5, 7)
    with pytest.raises(ValueError, match=r"orders must be \(K, L\) or \(B, K, L\), not \(35,\)"):
        ScanOrders(orders[0])
    with pytest.raises(ValueError, match="must be int64, not torch.int32"):
        ScanOrders(orders.int())
    with pytest.raises(ValueError, match=r"must be \(K, L\)"):
        ScanOrders(orders[0])


def test_trusted_orders_give_the_same(monkeypatch):
    """They give the result of a plain tensor and are not validated again."""
    inputs = cast(scan_inputs(), torch.float32)
    expected = cross_scan(**inputs)
    trusted = [ScanOrders(inputs["orders"]), grid_orders(5, 7)]
    monkeypatch.setattr("arm_backbone.ops.orders._validated", None)
    for orders in trusted:
        assert torch.equal(cross_scan(**inputs | dict(orders=orders)), expected)
    assert len(trusted[1]) == 4 and len(trusted[1][1:3]) == 2 and "4 directions, 35 tokens" in repr(trusted[1])


def test_orders_are_checked_in_a_compiled_graph():
    inputs = cast(scan_inputs(), torch.float32)

    def scan(u, orders):
        return cross_scan(**inputs | dict(u=u, orders=orders))

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    u = inputs["u"].detach()
    assert torch.equal(compiled(u, inputs["orders"]), scan(u, inputs["orders"]))
    with pytest.raises(ValueError, match="not a permutation"):
        compiled(u, inputs["orders"] + 1)


def test_plain_gate_backward():
    x, z, grad = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    leaves = x.clone().requires_grad_(), z.clone().requires_grad_()
    expected = gate.gate_forward(*leaves)
    wanted = torch.autograd.grad(expected, leaves, grad)
    given = grad.clone(), torch.empty_like(z)
    for results in (gate.gate_backward(grad, x, z), gate.gate_backward(given[0], x, z, *given)):
        for got, want in zip(results, wanted, strict=True):
            assert_close(got, want, 1e-13)
    assert results[0] is given[0] and results[1] is given[1]


NORMS = {
    "layer": lambda width: nn.LayerNorm(width, eps=0.1),
    "layer without bias": lambda width: nn.LayerNorm(width, eps=0.1, bias=False),
    "rms": lambda width: nn.RMSNorm(width, eps=0.1),
    "rms of default eps": lambda width: nn.RMSNorm(width),
}


@pytest.mark.parametrize("kind", NORMS)
def test_plain_norm_backward(kind):
    module = NORMS[kind](7).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    bias, eps = getattr(module, "bias", None), module.eps or torch.finfo(torch.float64).eps
    x, branch, grad, grad_total = torch.randn(4, 2, 5, 7, dtype=torch.float64)
    leaves = [x.clone().requires_grad_(), branch.clone().requires_grad_(), *module.parameters()]
    total = leaves[0] + leaves[1]
    expected = module(total)
    wanted = torch.autograd.grad((expected * grad).sum() + (total * grad_total).sum(), leaves)
    centered = kind.startswith("layer")
    got_total, out, *statistics = norm.norm_forward(x, branch, module.weight, bias, eps, centered, torch.float64)
    assert_close(got_total, total, 1e-15)
    assert_close(out, expected, 1e-13)
    results = norm.norm_backward(grad, grad_total, total, module.weight, *statistics, centered, torch.float64)
    for got, want in zip(results, wanted):
        assert_close(got, want, 1e-12)


@pytest.mark.parametrize("kind", NORMS)
def test_norms_under_autocast(kind):
    """With or without kernels, the sum is float32 and the result has the accuracy of bfloat16."""
    torch.manual_seed(0)
    module = NORMS[kind](24)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x, branch = torch.randn(2, 5, 24).requires_grad_(), torch.randn(2, 5, 24).bfloat16().requires_grad_()
    leaves = [x, branch, *module.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        total, out = add_layer_norm(x, branch, module)
        alone = layer_norm(x, module)
    expected = module(x + branch)
    assert_close(total.double(), (x + branch).double(), 1e-7)
    assert_close(out.double(), expected.double(), 2.0**-7)
    assert_close(alone.double(), module(x).double(), 2.0**-7)
    grad = torch.linspace(-1, 1, out.numel()).view_as(out)
    got = torch.autograd.grad((out.float() * grad).sum() + total.square().sum(), leaves)
    want = torch.autograd.grad((expected * grad).sum() + (x + branch).square().sum(), leaves)
    for one, other in zip(got, want, strict=True):
        assert_close(one.double(), other.double(), 2e-2)


def test_a_mixer_with_expansion():
    """With expand=2 the mixer has twice as many inner channels and equals its parts called one by one."""
    torch.manual_seed(0)
    mixer, x = MambaMixer(24, scans=4, expand=2).double(), torch.randn(2, 12, 24, dtype=torch.float64)
    assert mixer.in_proj.out_features == 96 and mixer.A_log.shape == (4, 48, 16) and mixer.dt_rank == 2
    a, z = mixer.in_proj(x).chunk(2, dim=-1)
    weights = (mixer.conv_weight, mixer.conv_bias, mixer.x_proj_weight, mixer.dt_proj_weight)
    y = mamba_inner(a, *weights, mixer.A_log, mixer.D, mixer.dt_proj_bias, grid_orders(3, 4))
    assert_close(mixer(x, grid_orders(3, 4)), mixer.out_proj(y * F.silu(z)), 1e-13)


def test_plain_scan_with_a_gate():
    inputs = {name: tensor.detach() for name, tensor in scan_inputs(grid=(3, 4)).items()}
    gate, given = torch.randn_like(inputs["u"][:, 0]), ScanInputs(**inputs)
    plain, gated = (torch_scan.scan_forward(given, True, "mean", False, False, g)[0] for g in (None, gate))
    assert_close(gated, plain * torch.nn.functional.silu(gate), 1e-14)
