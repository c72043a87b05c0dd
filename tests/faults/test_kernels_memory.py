"""What would make a kernel read or write other memory is refused by the public functions, before any kernel runs."""

import copy

import pytest
import torch
from torch import nn

from arm_backbone.mixer import MambaMixer
from arm_backbone.ops import (
    ScanOrders,
    cross_conv,
    cross_scan,
    gated_linear,
    layer_norm,
    mamba_inner,
    selective_scan,
    silu_gate,
)
from arm_backbone.ops.cpu import library as native
from arm_backbone.scan_order import grid_orders, scan_orders
from tests.helpers.scans import cast, scan_inputs

K, L, D, N, W, R = 4, 35, 6, 3, 4, 2
SHAPES = {
    cross_conv: dict(x=(2, L, D), weight=(K, D, W), bias=(K, D)),
    mamba_inner: dict(
        x=(2, L, D),
        conv_weight=(K, D, W),
        conv_bias=(K, D),
        x_proj_weight=(K, R + 2 * N, D),
        dt_proj_weight=(K, D, R),
        A_log=(K, D, N),
        D=(K, D),
        delta_bias=(K, D),
    ),
    cross_scan: dict(
        u=(2, K, L, D), delta=(2, K, L, D), A=(K, D, N), B=(2, K, L, N), C=(2, K, L, N), D=(K, D), delta_bias=(K, D)
    ),
    selective_scan: dict(
        u=(2, D, L), delta=(2, D, L), A=(D, N), B=(2, N, L), C=(2, N, L), D=(D,), z=(2, D, L), delta_bias=(D,)
    ),
}
OPERATORS = pytest.mark.parametrize("operator", SHAPES, ids=lambda f: f.__name__)
ORDERED = pytest.mark.parametrize("operator", [cross_conv, mamba_inner, cross_scan], ids=lambda f: f.__name__)


def arguments(operator, **sizes) -> dict[str, torch.Tensor]:
    """Random arguments; `sizes` replaces numbers in all shapes, as K=0."""
    generator = torch.Generator().manual_seed(0)
    size = {globals()[name]: value for name, value in sizes.items()}
    shapes = {n: tuple(size.get(s, s) for s in shape) for n, shape in SHAPES[operator].items()}
    tensors = {n: torch.randn(*shape, generator=generator) for n, shape in shapes.items()}
    if operator is not selective_scan:
        length = sizes.get("L", L)
        tensors["orders"] = (scan_orders(5, 7) if length == L else torch.arange(length).repeat(4, 1))[
            : sizes.get("K", K)
        ]
    return tensors


def set_entry(orders: torch.Tensor, value: int) -> torch.Tensor:
    orders = orders.clone()
    orders[0, 3] = value
    return orders


WRONG = {
    "minus one": lambda o: set_entry(o, -1),
    "one beyond the last": lambda o: set_entry(o, L),
    "huge": lambda o: set_entry(o, 10**8),
    "twice the same": lambda o: set_entry(o, int(o[0, 4])),
}


@ORDERED
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("changed", ["before", "by index", "by copy_", "through a view", "one of a slice"])
def test_row_32_and_33_orders_changed_after_validation(operator, wrong, changed):
    """Orders that were valid when `ScanOrders` was made are validated again if somebody wrote into them."""
    bad = WRONG[wrong](scan_orders(5, 7))
    orders = grid_orders(5, 7)
    if changed == "before":
        orders = bad
    elif changed == "by index":
        orders.tensor[0, 3] = bad[0, 3]
    elif changed == "by copy_":
        orders.tensor.copy_(bad)
    elif changed == "through a view":
        orders.tensor.view(-1)[3] = bad[0, 3]
    else:
        whole, orders = orders, orders[0:4]
        whole.tensor[0, 3] = bad[0, 3]
    with pytest.raises(ValueError, match=r"orders\[0\] is not a permutation of the 35 tokens"):
        operator(**arguments(operator) | dict(orders=orders))


@ORDERED
def test_row_33_orders_changed_to_another_permutation(operator):
    given, orders = arguments(operator), grid_orders(5, 7)
    orders.tensor.copy_(orders.tensor.flip(0))
    expected = operator(**given | dict(orders=scan_orders(5, 7).flip(0)))
    assert torch.equal(operator(**given | dict(orders=orders)), expected)
    assert torch.equal(operator(**given | dict(orders=copy.deepcopy(orders))), expected)


@ORDERED
def test_row_32_a_subclass_is_not_trusted(operator):
    class Mine(ScanOrders):
        def __init__(self) -> None:
            pass

        tensor = scan_orders(5, 7) * 5

    with pytest.raises(ValueError, match="not a permutation"):
        operator(**arguments(operator) | dict(orders=Mine()))


@ORDERED
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.int(), "orders must be int64, not torch.int32"),
        (lambda o: o.expand(1, 7, -1, -1), r"orders must be \(K, L\) or \(B, K, L\), not \(1, 7, 4, 35\)"),
        (lambda o: o[0], r"orders must be \(K, L\)"),
        (lambda o: o.tolist(), "orders must be a tensor or ScanOrders, not list"),
        (lambda o: o.to_sparse(), "orders must be a dense tensor"),
    ],
)
def test_row_32_orders_of_a_wrong_kind(operator, change, message):
    given = arguments(operator)
    with pytest.raises(ValueError, match=message):
        operator(**given | dict(orders=change(given["orders"])))
    if message != "orders must be a tensor or ScanOrders, not list":
        with pytest.raises(ValueError, match=message):
            ScanOrders.trusted(change(given["orders"]))


@ORDERED
def test_row_32_orders_made_in_inference_mode(operator):
    """PyTorch does not count changes of such tensors."""
    given = arguments(operator)
    with torch.inference_mode():
        orders = grid_orders(5, 7)
    assert torch.equal(operator(**given | dict(orders=orders)), operator(**given))


@pytest.mark.parametrize(
    ("operator", "size"),
    [(cross_conv, "W"), (mamba_inner, "W")] + [(f, "K") for f in SHAPES if f is not selective_scan],
)
def test_row_34_no_taps_and_no_directions(operator, size):
    with pytest.raises(ValueError, match="the tensors have 0 (taps|directions); give at least 1"):
        operator(**arguments(operator, **{size: 0}))


@OPERATORS
@pytest.mark.parametrize("size", ["D", "N", "L"])
def test_row_34_no_channels_no_states_no_tokens(operator, size):
    """Every gradient is exactly the plain loop's: 0 where nothing reaches it, not uninitialised memory."""
    if size == "N" and operator is cross_conv:
        pytest.skip("has no states")
    torch.full((1 << 16,), 1e30)  # memory that a kernel would be given uninitialised
    given = arguments(operator, **{size: 0})
    if operator is mamba_inner and size == "N":
        given["x_proj_weight"] = torch.randn(K, R, D)
    leaves = {n: v.requires_grad_() for n, v in given.items() if v.is_floating_point()}
    result = operator(**given)
    grads = torch.autograd.grad(result.sum(), list(leaves.values()), allow_unused=True)
    if size == "N":
        assert result.isfinite().all() and all(g is None or g.isfinite().all() for g in grads)
    else:
        assert not result.numel() and all(g is None or not g.any() for g in grads)


@OPERATORS
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool, torch.float8_e4m3fn], ids=str)
def test_row_35_what_is_no_real_number_is_refused(operator, dtype):
    """A kernel would drop the imaginary part or read the bits as another type."""
    given = arguments(operator)
    for name in SHAPES[operator]:
        with pytest.raises(ValueError, match=rf"^{name} (is complex|must be a real floating-point tensor)"):
            operator(**given | {name: given[name].to(dtype)})


@OPERATORS
def test_rows_32_to_35_other_devices_shapes_and_kinds(operator):
    given = arguments(operator)
    wrong = dict(
        device=lambda x: x.to("meta"),
        shape=lambda x: x[..., :-1],
        dimensions=lambda x: x[0],
        sparse=lambda x: x.to_sparse(),
        array=lambda x: x.numpy(),
    )
    for kind, change in wrong.items():
        for name in SHAPES[operator]:
            if operator is selective_scan and (kind, name) in (("dimensions", "B"), ("dimensions", "C")):
                continue  # a constant has two dimensions
            if kind == "shape" and name in ("weight", "conv_weight"):
                continue  # a filter with one tap less
            with pytest.raises(ValueError):
                operator(**given | {name: change(given[name])})
    with pytest.raises(ValueError):
        operator(**given | {n: v.unsqueeze(0) for n, v in given.items()})


@pytest.mark.parametrize(
    "parameter", [dict(weight=torch.ones(2)), dict(bias=torch.ones(2)), dict(weight=torch.ones(8).int())], ids=str
)
def test_rows_32_to_35_a_norm_with_other_parameters(parameter):
    """The kernels would read beyond the end of a short weight; PyTorch's own call refuses it."""
    norm = nn.LayerNorm(8)
    for name, value in parameter.items():
        setattr(norm, name, nn.Parameter(value, requires_grad=False))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError):
        layer_norm(torch.randn(2, 8), norm)


def test_rows_32_to_35_a_sign_that_is_not_applied_yet():
    """PyTorch keeps the sign of a conjugate's imaginary part apart from its memory, which kernels read."""
    x, z = torch.randn(2, 8), torch.randn(2, 8)
    torch.testing.assert_close(silu_gate(torch._neg_view(x), z), silu_gate(-x, z))
    inner = arguments(mamba_inner)
    negated = inner | dict(x=torch._neg_view(inner["x"]))
    torch.testing.assert_close(mamba_inner(**negated), mamba_inner(**inner | dict(x=-inner["x"])))


@OPERATORS
def test_rows_32_to_35_views_of_every_kind_give_the_same(operator):
    """Expanded, transposed and shifted memory; the inputs are left as they were."""
    given = arguments(operator)
    expected = operator(**given)
    before = {n: v.clone() for n, v in given.items()}

    def shifted(x):
        return torch.cat([x.new_ones(1), x.flatten()])[1:].view(x.shape)

    def strided(x):
        return torch.stack([x, -x], -1)[..., 0]

    for change in (shifted, strided):
        changed = {n: change(v) for n, v in given.items()}
        torch.testing.assert_close(operator(**changed), expected)
    assert all(torch.equal(given[n], before[n]) for n in given)
    one = {n: v[:1].expand(v.shape) if v.is_floating_point() else v for n, v in given.items()}
    copies = {n: v.clone(memory_format=torch.contiguous_format) for n, v in one.items()}
    torch.testing.assert_close(operator(**one), operator(**copies))


def test_rows_32_to_35_one_tensor_in_several_places():
    """u, delta and the result never share memory, although the backward of `mamba_inner` writes in place."""
    inputs = {n: v.detach() for n, v in cast(scan_inputs(state=6), torch.float32).items()}
    same = inputs | {n: inputs["u"] for n in ("delta", "B", "C")}
    apart = inputs | {n: inputs["u"].clone() for n in ("delta", "B", "C")}
    assert torch.equal(cross_scan(**same), cross_scan(**apart))
    x = torch.randn(3, 8)
    gate = x.clone()
    assert torch.equal(silu_gate(x, x), silu_gate(x, gate)) and torch.equal(x, gate)


def test_row_56_a_linear_of_another_type_is_the_same_in_training_and_inference():
    x, z, linear = torch.randn(2, 8), torch.randn(2, 8), nn.Linear(8, 3).double()
    messages = []
    for leaf in (x, x.clone().requires_grad_()):
        with pytest.raises(RuntimeError) as error:
            gated_linear(leaf, z, linear)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("where", ["forward", "__call__"])
def test_row_56_a_linear_replaced_on_its_class_is_called(where, monkeypatch):
    """As tools do that count or quantise: they must see every layer in training as in inference."""
    mixer, x, calls = MambaMixer(8), torch.randn(2, 9, 8), []
    owner = nn.Linear if where == "forward" else nn.Module
    original = getattr(owner, where)

    def counted(self, *args):
        calls.append(type(self) is nn.Linear)
        return original(self, *args)

    monkeypatch.setattr(owner, where, counted)
    with torch.no_grad():
        mixer(x, grid_orders(3, 3))
    inference = sum(calls)
    mixer(x, grid_orders(3, 3))
    assert inference == sum(calls) - inference == 2


def corrupted(how: str) -> ScanOrders:
    """Orders changed in ways that PyTorch does not count, or that were trusted wrongly."""
    if how == "trusted":
        return ScanOrders.trusted(set_entry(scan_orders(5, 7), 10**8))
    orders = grid_orders(5, 7)
    if how == "data":
        orders.tensor.data[0, 3] = 10**8
    else:
        orders.tensor.numpy()[0, 3] = -(10**8)
    return orders


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
@ORDERED
@pytest.mark.parametrize("how", ["trusted", "data", "numpy"])
def test_row_32_the_native_kernels_check_what_was_trusted(operator, how):
    with pytest.raises(ValueError, match=r"orders\[0\] is not a permutation .* although it was trusted"):
        operator(**arguments(operator) | dict(orders=corrupted(how)))


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_row_32_orders_corrupted_between_forward_and_backward():
    given, orders = arguments(mamba_inner), grid_orders(5, 7)
    leaves = {n: v.requires_grad_() for n, v in given.items() if v.is_floating_point()}
    result = mamba_inner(**leaves, orders=orders).sum()
    orders.tensor.data[0, 3] = 10**8
    with pytest.raises(ValueError, match="not a permutation"):
        result.backward()
    with pytest.raises(ValueError, match="not a permutation"):  # called past the public function
        torch.ops.arm.cross_conv(*list(arguments(cross_conv).values())[:3], orders.tensor)
