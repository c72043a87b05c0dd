"""`selective_scan` takes what mamba-ssm's function takes, and the back end of that package says when it cannot run."""

import itertools
import re
import sys

import pytest
import torch
import torch.nn.functional as F

from arm_backbone.ops import cross_scan, dispatch, selective_scan
from arm_backbone.ops.cpu import library as native
from tests.helpers.scans import assert_close

BATCH, CHANNELS, STATES, LENGTH = 2, 4, 8, 29


def expanded(x: torch.Tensor) -> torch.Tensor:
    """B or C of any of mamba-ssm's shapes as (B, D, N, L)."""
    if x.ndim == 2:
        return x[None, :, :, None].expand(BATCH, -1, -1, LENGTH)
    x = x.unsqueeze(1) if x.ndim == 3 else x
    return x.repeat_interleave(CHANNELS // x.shape[1], dim=1)


def loop(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """The definition, token by token."""
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = F.softplus(delta) if delta_softplus else delta
    B, C, state, outputs = expanded(B), expanded(C), u.new_zeros(BATCH, CHANNELS, STATES), []
    for t in range(LENGTH):
        state = torch.exp(delta[..., t, None] * A) * state + (delta * u)[..., t, None] * B[..., t]
        outputs.append((state * C[..., t]).sum(-1))
    y = torch.stack(outputs, -1)
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * F.silu(z)), state


FORMS = {
    "constant": (CHANNELS, STATES),
    "by token": (BATCH, STATES, LENGTH),
    "one group": (BATCH, 1, STATES, LENGTH),
    "two groups": (BATCH, 2, STATES, LENGTH),
}
BACKENDS = [
    ("torch", torch.float64, 1e-11),
    ("reference", torch.float64, 1e-11),
    pytest.param(
        ("cpu", torch.float32, 1e-5), marks=pytest.mark.skipif(native.unavailable() is not None, reason="not built")
    ),
]


@pytest.mark.parametrize(("form_B", "form_C"), list(itertools.product(FORMS, FORMS)))
@pytest.mark.parametrize("run", BACKENDS, ids=["torch", "reference", "cpu"])
@pytest.mark.parametrize("optional", [True, False], ids=["all arguments", "only the first"])
def test_row_57_groups_and_constants(form_B, form_C, run, optional):
    backend, dtype, tolerance = run
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    given = dict(
        u=normal(BATCH, CHANNELS, LENGTH),
        delta=normal(BATCH, CHANNELS, LENGTH).abs() / 2,
        A=-normal(CHANNELS, STATES).abs(),
        B=normal(*FORMS[form_B]),
        C=normal(*FORMS[form_C]),
    )
    if optional:
        given |= dict(D=normal(CHANNELS), z=normal(BATCH, CHANNELS, LENGTH), delta_bias=normal(CHANNELS).abs())
    exact = {n: v.clone().requires_grad_() for n, v in given.items()}
    given = {n: v.to(dtype).requires_grad_() for n, v in given.items()}
    expected, state = loop(**exact, delta_softplus=optional)
    result, last = selective_scan(**given, delta_softplus=optional, return_last_state=True, backend=backend)
    assert_close(result, expected, tolerance)
    assert_close(last, state, tolerance)
    assert torch.equal(selective_scan(**given, delta_softplus=optional, backend=backend), result)
    grad = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view_as(result)
    wanted = torch.autograd.grad(expected, list(exact.values()), grad)
    for got, want in zip(torch.autograd.grad(result, list(given.values()), grad.to(dtype)), wanted, strict=True):
        assert got.shape == want.shape
        assert_close(got, want, 10 * tolerance)


def test_row_57_half_precision_with_float32_constants():
    """As mamba-ssm's tests: tokens in bfloat16, parameters in float32; the result has the type of u."""
    u, delta, A = (
        torch.randn(BATCH, CHANNELS, LENGTH).bfloat16(),
        torch.rand(BATCH, CHANNELS, LENGTH).bfloat16(),
        -torch.rand(CHANNELS, STATES),
    )
    B, C = torch.randn(CHANNELS, STATES), torch.randn(BATCH, 2, STATES, LENGTH).bfloat16()
    result = selective_scan(u, delta, A, B, C)
    expected, _ = loop(u.double(), delta.double(), A.double(), B.double(), C.double())
    assert result.dtype == torch.bfloat16
    assert_close(result.double(), expected, 3e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(A=torch.ones(4, 8, dtype=torch.complex64)), "A is complex; selective_scan takes real tensors only"),
        (dict(B=torch.ones(2, 3, 8, 29)), "G must be the same in both or 1, and divide the 4 channels"),
        (dict(B=torch.ones(2, 2, 8, 29), C=torch.ones(2, 4, 8, 29)), "G must be the same in both or 1"),
        (dict(B=torch.ones(2, 0, 8, 29)), "G must be"),
        (dict(B=torch.ones(8, 4)), "B has shape"),
        (dict(C=torch.ones(2, 2, 8, 28)), "C has shape"),
        (dict(z=torch.ones(2, 4, 1)), "z has shape"),
        (dict(B=torch.ones(8)), "selective_scan takes u"),
    ],
)
def test_row_57_other_shapes_are_named(change, message):
    given = dict(u=torch.ones(2, 4, 29), delta=torch.ones(2, 4, 29), A=-torch.ones(4, 8))
    given |= dict(B=torch.ones(2, 8, 29), C=torch.ones(2, 8, 29))
    with pytest.raises(ValueError, match=message):
        selective_scan(**given | change)


PACKAGES = {
    "of today": ("selective_scan_cuda = object()\ndef selective_scan_fn(): pass\n", None),
    "built without the kernel": (
        "selective_scan_cuda = None\ndef selective_scan_fn(): pass\n",
        "built without its kernel selective_scan_cuda; MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE pip install",
    ),
    "that no longer names it": ("def selective_scan_fn(): pass\n", "built without its kernel"),
    "of another torch": (
        "raise ImportError('undefined symbol:\\n _ZN3c10')",
        "cannot be imported .undefined symbol: _ZN",
    ),
    "that fails in a library": ("raise OSError('libcudart.so.13: cannot open')", "cannot be imported .libcudart"),
}


@pytest.mark.parametrize("package", PACKAGES)
def test_mamba_ssm_of_2026_is_available_only_with_its_kernel(package, tmp_path, monkeypatch):
    code, message = PACKAGES[package]
    folder = tmp_path / "mamba_ssm" / "ops"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "selective_scan_interface.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.split(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)
    dispatch._mamba_ssm_unavailable.cache_clear()
    try:
        reason = dispatch.unavailable("mamba_ssm", torch.device("cuda"), torch.float32)
    finally:
        dispatch._mamba_ssm_unavailable.cache_clear()
        for name in [n for n in sys.modules if n.split(".")[0] == "mamba_ssm"]:
            del sys.modules[name]
    if message is None:
        assert reason is None
    else:
        assert re.search(message, reason) and "use 'triton', which needs no build" in reason


def tokens_first(x: torch.Tensor) -> torch.Tensor:
    """The same tensor (B, C, L), which lies in memory as (B, L, C)."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.skipif(native.unavailable() is not None, reason="not built")
@pytest.mark.parametrize("isa", native.ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 64, 24, 16), (2, 70, 75, 17), (3, 130, 49, 4), (1, 5, 7, 2), (2, 33, 1, 1)])
def test_row_58_channels_first_is_read_where_it_lies(isa, dtype, sizes, monkeypatch):
    """In mamba-ssm's layout the kernel transposes blocks; results and gradients are those of the other layout."""
    monkeypatch.setenv("ARM_CPU_ISA", isa)
    try:
        native.kernels()
    except ValueError as error:
        pytest.skip(str(error))
    batch, channels, length, states = sizes
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    per_token = [normal(batch, n, length).to(dtype) for n in (channels, channels, states, states)]
    A, D, bias = -normal(channels, states).abs(), normal(channels), normal(channels)
    results = []
    for layout in (torch.Tensor.contiguous, tokens_first):
        u, delta, B, C = (layout(x).requires_grad_() for x in per_token)
        y, state = selective_scan(u, delta, A, B, C, D, None, bias, True, True, backend="cpu")
        with torch.no_grad():
            assert torch.equal(selective_scan(u, delta, A, B, C, D, None, bias, True, backend="cpu"), y)
        results.append([y, state, *torch.autograd.grad(y.float().square().sum(), (u, delta, B, C))])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@pytest.mark.skipif(native.unavailable() is not None, reason="not built")
def test_row_58_a_sequence_in_another_order_is_not_read_where_it_lies():
    """A cross_scan of one direction on tensors in that layout, backwards."""
    torch.manual_seed(0)
    u, delta, B, C = (torch.randn(1, 1, n, 30).transpose(2, 3) for n in (20, 20, 4, 4))
    A = -torch.rand(1, 20, 4)
    orders = torch.arange(29, -1, -1)[None]
    expected = cross_scan(*(x.double() for x in (u, delta, A, B, C)), None, None, orders, backend="torch")
    assert_close(cross_scan(u, delta, A, B, C, None, None, orders, backend="cpu").double(), expected, 1e-5)
