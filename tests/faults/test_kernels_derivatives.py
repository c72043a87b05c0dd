"""Derivatives other than `backward()`: right with the plain PyTorch back ends, refused by name with kernels."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from arm_backbone.classifier import ARMClassifier
from arm_backbone.mixer import MambaMixer
from arm_backbone.ops import cross_conv, cross_scan, scan_backend, selective_scan
from arm_backbone.ops.cpu import library as native
from arm_backbone.scan_order import grid_orders
from tests.helpers.scans import assert_close, scan_inputs

PLAIN = pytest.mark.parametrize("backend", ["torch", "reference"])
KERNELS = pytest.mark.parametrize(
    "backend",
    ["auto", pytest.param("cpu", marks=pytest.mark.skipif(native.unavailable() is not None, reason="not built"))],
)
REMEDY = r"kernels do not support (forward-mode|torch.func) derivatives; use the plain PyTorch back end: .*'torch'"


def mixer_loss(dtype):
    torch.manual_seed(0)
    mixer, orders = MambaMixer(6).to(dtype), grid_orders(3, 3)
    return lambda x: mixer(x, orders).square().sum()


def forward_tangent(function, x, tangent):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent


TANGENTS = dict(jvp=lambda f, x, t: jvp(f, (x,), (t,))[1], forward_ad=forward_tangent)


@PLAIN
@pytest.mark.parametrize("mode", TANGENTS)
@pytest.mark.parametrize("grads", [True, False])
def test_row_16_tangent_of_a_mixer(backend, mode, grads):
    """It was that of the gate alone: the scan dropped its part."""
    loss, x, tangent = mixer_loss(torch.float64), *torch.randn(2, 2, 9, 6, dtype=torch.float64)
    with scan_backend(backend):
        leaf = x.clone().requires_grad_()
        expected = (torch.autograd.grad(loss(leaf), leaf)[0] * tangent).sum()
        with torch.set_grad_enabled(grads):
            assert_close(TANGENTS[mode](loss, x, tangent), expected, 1e-10)


@PLAIN
@pytest.mark.parametrize("mode", TANGENTS)
def test_row_16_tangent_of_a_classifier(backend, mode):
    torch.manual_seed(0)
    model = ARMClassifier(arch=dict(embed_dims=16, num_layers=2), img_size=32, num_classes=3).double().eval()
    x, tangent = torch.randn(2, 1, 3, 32, 32, dtype=torch.float64)
    with scan_backend(backend):
        expected = (model(x + 1e-6 * tangent) - model(x - 1e-6 * tangent)) / 2e-6
        assert_close(TANGENTS[mode](model, x, tangent), expected, 1e-6)


@KERNELS
@pytest.mark.parametrize("mode", TANGENTS)
def test_row_16_kernels_refuse_tangents(backend, mode):
    loss, x, tangent = mixer_loss(torch.float32), *torch.randn(2, 2, 9, 6)
    with scan_backend(backend), pytest.raises(NotImplementedError, match=REMEDY):
        TANGENTS[mode](loss, x, tangent)
    with scan_backend(backend), torch.no_grad(), pytest.raises(NotImplementedError, match=REMEDY):
        TANGENTS[mode](loss, x, tangent)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "delta_bias"])
@pytest.mark.parametrize("backend", ["torch", "reference", "cpu"])
def test_row_16_tangent_of_each_input_of_the_scan(backend, name):
    dtype = torch.float32 if backend == "cpu" else torch.float64
    inputs = {n: v.detach().to(dtype) if v.is_floating_point() else v for n, v in scan_inputs(grid=(2, 4)).items()}
    tangent = torch.randn_like(inputs[name])

    def scan(x):
        return cross_scan(**inputs | {name: x}, backend=backend)

    if backend == "cpu":
        if native.unavailable():
            pytest.skip("not built")
        with pytest.raises(NotImplementedError, match=REMEDY):
            forward_tangent(scan, inputs[name], tangent)
        return
    with torch.no_grad():
        expected = (scan(inputs[name] + 1e-6 * tangent) - scan(inputs[name] - 1e-6 * tangent)) / 2e-6
    assert_close(forward_tangent(scan, inputs[name], tangent), expected, 1e-6)


def test_row_16_tangents_of_the_other_operators():
    """The registered operators refuse a tangent themselves, whoever calls them."""
    x, weight, bias = torch.randn(2, 9, 6), torch.randn(4, 6, 4), torch.randn(4, 6)
    with pytest.raises(NotImplementedError, match=REMEDY):
        forward_tangent(lambda x: cross_conv(x, weight, bias, grid_orders(3, 3)), x, x)
    with pytest.raises(NotImplementedError, match=REMEDY):
        forward_tangent(lambda x: torch.ops.arm.cross_conv(x, weight, bias, grid_orders(3, 3).tensor), x, x)
    u, A, B = torch.randn(2, 6, 9), -torch.rand(6, 3), torch.randn(2, 3, 9)
    with pytest.raises(NotImplementedError, match=REMEDY):
        forward_tangent(lambda u: selective_scan(u, u, A, B, B), u, u)
    with forward_ad.dual_level():  # nothing here has a tangent
        assert cross_conv(x, weight, bias, grid_orders(3, 3)).isfinite().all()


@PLAIN
def test_row_55_all_derivatives_of_torch_func(backend):
    loss, x = mixer_loss(torch.float64), torch.randn(2, 9, 6, dtype=torch.float64)
    with scan_backend(backend):
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(leaf), leaf)
        assert_close(grad(loss)(x), expected, 1e-10)
        assert_close(jacrev(loss)(x), expected, 1e-10)
        assert_close(jacfwd(loss)(x), expected, 1e-10)
        assert_close(vmap(grad(lambda one: loss(one[None])))(x), expected, 1e-10)
        one = x[0]
        second = hessian(lambda one: loss(one[None]))(one)
        step = 1e-5 * torch.randn_like(one)
        change = grad(lambda one: loss(one[None]))(one + step) - grad(lambda one: loss(one[None]))(one - step)
        assert_close((second * step).sum((2, 3)), change / 2, 1e-5)


@PLAIN
def test_row_55_gradients_of_each_image(backend):
    torch.manual_seed(0)
    mixer, x = MambaMixer(6).double(), torch.randn(3, 9, 6, dtype=torch.float64)
    weights = dict(mixer.named_parameters())

    def loss(weights, one):
        return functional_call(mixer, weights, (one[None], grid_orders(3, 3))).square().sum()

    with scan_backend(backend):
        each = vmap(grad(loss), (None, 0))(weights, x)
        for i, one in enumerate(x):
            expected = torch.autograd.grad(loss(weights, one), list(weights.values()))
            for name, wanted in zip(weights, expected, strict=True):
                assert_close(each[name][i], wanted, 1e-10)


@KERNELS
@pytest.mark.parametrize("derivative", [grad, jacrev, lambda f: vmap(grad(lambda one: f(one[None]))), hessian])
def test_row_55_kernels_refuse_them(backend, derivative):
    loss, x = mixer_loss(torch.float32), torch.randn(2, 9, 6)
    with scan_backend(backend), pytest.raises(NotImplementedError, match=REMEDY):
        derivative(loss)(x)


def test_row_55_vmap_alone_and_functional_call_still_use_kernels():
    torch.manual_seed(0)
    mixer, x = MambaMixer(6), torch.randn(2, 9, 6)
    expected = mixer(x, grid_orders(3, 3))
    torch.testing.assert_close(vmap(lambda one: mixer(one[None], grid_orders(3, 3))[0])(x), expected)
    called = functional_call(mixer, dict(mixer.named_parameters()), (x, grid_orders(3, 3)))
    torch.testing.assert_close(called, expected)


def test_row_55_double_backward_names_a_way():
    leaf = torch.randn(2, 9, 6, dtype=torch.float64).requires_grad_()
    with pytest.raises(RuntimeError, match="differentiate with torch.func and .*ARM_SCAN_BACKEND=torch"):
        torch.autograd.grad(mixer_loss(torch.float64)(leaf), leaf, create_graph=True)
