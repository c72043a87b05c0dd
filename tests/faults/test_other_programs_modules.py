"""A model whose layers were replaced, adapted or hooked computes what its layers compute when each is called.

`plain` below calls every layer and uses no fused operator.
"""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from arm_backbone.classifier import ARMClassifier
from arm_backbone.mixer import MambaMixer
from arm_backbone.ops import cross_conv, cross_scan
from arm_backbone.ops.gate import gated_linear
from arm_backbone.ops.norm import layer_norm
from tests.helpers.scans import assert_close

DIM, BLOCKS = 32, 2


def small() -> ARMClassifier:
    torch.manual_seed(0)
    return ARMClassifier(dict(embed_dims=DIM, num_layers=BLOCKS), 32, num_classes=5).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def plain_mixer(mixer: MambaMixer, x: Tensor, orders) -> Tensor:
    x, z = mixer.in_proj(x).chunk(2, dim=-1)
    u = cross_conv(x, mixer.conv_weight, mixer.conv_bias, orders)
    projected = torch.einsum("bkld,kcd->bklc", u, mixer.x_proj_weight)
    r, B, C = projected.split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
    delta = torch.einsum("bklr,kdr->bkld", r, mixer.dt_proj_weight)
    A = -mixer.A_log.exp()
    y = cross_scan(u, delta, A, B, C, mixer.D, mixer.dt_proj_bias, orders, backend="torch")
    return mixer.out_proj(y * F.silu(z))


def plain(model: ARMClassifier, images: Tensor) -> Tensor:
    x, grid = model.embed(images)
    orders = model.orders(grid)
    for block in model.blocks:
        x = x + plain_mixer(block.mixer, block.norm1(x), orders)
        y, mlp = block.norm2(x), block.mlp
        x = x + mlp.w3(mlp.w2(y) * F.silu(mlp.w1(y)))
    return model.forward_head(model.norm(x))


# ------------------------------------------------------------------------------------ what users replace


class LoRA(nn.Module):
    """A low-rank adapter; like peft's, it offers its base layer's weight, which is not what it computes with."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


class NormTuning(nn.Module):
    """A tuned copy of a norm beside the frozen original, as peft's LNTuning."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.tuned = base.requires_grad_(False), copy.deepcopy(base).requires_grad_()
        nn.init.normal_(self.tuned.weight)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)
    eps = property(lambda self: self.base_layer.eps)
    normalized_shape = property(lambda self: self.base_layer.normalized_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.tuned(x)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def replace(model: nn.Module, names: tuple[str, ...], make) -> None:
    """Replace every module of one of these names."""
    for parent in list(model.modules()):
        for name in names:
            if name in parent._modules:
                setattr(parent, name, make(getattr(parent, name)))


def scale_output(module, arguments, output):
    return 3 * output


def scale_input(module, arguments):
    return tuple(3 * x for x in arguments)


def scale_gradient(module, grad_input, grad_output):
    return tuple(3 * g for g in grad_input)


def each(model: nn.Module, names: tuple[str, ...], change) -> None:
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in names:
            change(module)


NORMS, LINEARS = ("norm1", "norm2"), ("in_proj", "out_proj", "w1", "w2", "w3")
FUSED = ("out_proj", "w3")  # the layers whose weights a fused operator reads
CHANGES = {
    "row_52 norm is Identity": lambda m: replace(m, NORMS, lambda norm: nn.Identity()),
    "row_52 norm is RMSNorm": lambda m: replace(m, NORMS, lambda norm: nn.RMSNorm(DIM, eps=0.1)),
    "row_52 norm without weights": lambda m: replace(
        m, NORMS, lambda norm: nn.LayerNorm(DIM, elementwise_affine=False)
    ),
    "row_52 norm is a wrapper": lambda m: replace(m, NORMS, lambda norm: nn.Sequential(norm, nn.Tanh())),
    "row_52 norm is tuned": lambda m: replace(m, NORMS, NormTuning),
    "row_52 norm over two dimensions": lambda m: replace(
        m, NORMS, lambda norm: nn.Sequential(nn.Unflatten(2, (4, 8)), nn.LayerNorm((4, 8)), nn.Flatten(2))
    ),
    "only norm2 is Identity": lambda m: replace(m, ("norm2",), lambda norm: nn.Identity()),
    "LoRA": lambda m: replace(m, LINEARS, LoRA),
    "linear is a subclass": lambda m: replace(m, FUSED, lambda old: Doubled(old.in_features, old.out_features)),
    "linear gets a bias": lambda m: replace(m, FUSED, lambda old: nn.Linear(old.in_features, old.out_features)),
    "linear is Sequential": lambda m: replace(m, LINEARS, lambda old: nn.Sequential(old, nn.Tanh())),
    "weight_norm": lambda m: each(m, LINEARS, lambda layer: parametrizations.weight_norm(layer)),
    "spectral_norm": lambda m: each(m, LINEARS, lambda layer: parametrizations.spectral_norm(layer)),
    "spectral_norm with hooks": lambda m: each(m, FUSED, lambda layer: nn.utils.spectral_norm(layer)),
    "pruned": lambda m: each(m, LINEARS, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "parametrised scan": lambda m: each(
        m, ("mixer",), lambda mixer: nn.utils.parametrize.register_parametrization(mixer, "D", nn.Tanh())
    ),
    "forward hooks": lambda m: each(
        m, (*FUSED, *NORMS), lambda layer: layer.register_forward_hook(scale_output, always_call=True)
    ),
    "forward pre-hooks": lambda m: each(
        m, (*FUSED, *NORMS), lambda layer: layer.register_forward_pre_hook(scale_input)
    ),
    "backward hooks": lambda m: each(
        m, (*FUSED, *NORMS), lambda layer: layer.register_full_backward_hook(scale_gradient)
    ),
    "forward replaced": lambda m: each(
        m, (*FUSED, *NORMS), lambda layer: setattr(layer, "forward", lambda x, call=layer.forward: 2 * call(x))
    ),
    "_call_impl replaced": lambda m: each(
        m, (*FUSED, *NORMS), lambda layer: setattr(layer, "_call_impl", lambda x, call=layer._call_impl: 2 * call(x))
    ),
    "shared layers": lambda m: replace(m, FUSED, lambda old, first={}: first.setdefault(old.in_features, old)),
}
# these do not change the result of a new model, only who computes it or what trains
EQUAL = {"row_52 norm without weights", "row_52 norm over two dimensions", "weight_norm", "backward hooks"}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_layers_are_called(change):
    """With and without gradients, and under autocast, where the norms have kernels too."""
    model, x = small(), images()
    CHANGES[change](model)
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        expected = plain(model, x)
        assert torch.allclose(expected, plain(small(), x), atol=1e-4) == (change in EQUAL)
        assert_close(model(x), expected, 1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(model(x).float(), expected, 0.1)
    wanted = torch.autograd.grad(plain(model, x).square().sum(), trained, allow_unused=True)
    found = torch.autograd.grad(model(x).square().sum(), trained, allow_unused=True)
    for got, want in zip(found, wanted, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert_close(got, want, 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert_close(output.float(), expected, 0.1)
    rough = torch.autograd.grad(output.float().square().sum(), trained, allow_unused=True)
    norm = sum(want.square().sum() for want in wanted if want is not None).sqrt()
    error = sum((a - b).square().sum() for a, b in zip(rough, wanted) if b is not None).sqrt()
    assert error < 0.1 * norm


def test_quantised_linears_infer():
    """Dynamically quantised layers: `weight` is a method there."""
    model, x = small(), images()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    with torch.no_grad():
        assert_close(quantised(x), plain(quantised, x), 1e-4)
        assert_close(quantised(x), model(x), 0.1)
    assert_close(quantised(x.requires_grad_()), plain(quantised, x), 1e-4)  # with gradients enabled


def test_row_56_replaced_forward_of_the_class_is_called_everywhere(monkeypatch):
    """As some profilers and quantisers do; a fused layer would not be seen."""
    model, seen, original = small(), [], nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: seen.append(self) or original(self, x))
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for mode in (True, False):
        seen.clear()
        with torch.set_grad_enabled(mode):
            model(images())
        assert len(seen) == len(linears) and {*seen} == {*linears}


@pytest.mark.parametrize("name", ["mlp.w3", "mixer.out_proj", "norm1", "norm2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_row_56_layer_of_another_type_acts_the_same_in_training_and_inference(name, dtype, autocast):
    """A linear's own call raises; then it raises in training too. A norm's kernel converts 16-bit weights."""

    def outcome(call, grads: bool) -> object:
        with torch.set_grad_enabled(grads), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            try:
                return call(images()).float()
            except RuntimeError as error:
                return type(error)

    model = small()
    model.blocks[0].get_submodule(name).to(dtype)
    training, inference, expected = outcome(model, True), outcome(model, False), outcome(partial(plain, model), False)
    if isinstance(training, type) or isinstance(inference, type):
        assert training == inference == expected
        return
    assert_close(training, inference, 1e-2)
    if isinstance(expected, type):
        assert name.startswith("norm") and dtype == torch.bfloat16 and autocast
        expected = plain(model.float(), images())
    assert_close(training, expected, 0.1)


def test_fused_operators_take_any_module():
    """The operators themselves ask what a module is before they read anything from it."""
    x, z = torch.randn(2, 2, 5, DIM, requires_grad=True).unbind()
    for module in (nn.Identity(), nn.Tanh(), LoRA(nn.Linear(DIM, DIM)), torch.tanh):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer_norm(x, module), module(x))
        assert_close(gated_linear(x, z, module), module(x * F.silu(z)), 1e-5)


def test_initialising_a_model_with_adapters_names_the_layer():
    model = small()
    model.blocks[1].mlp.w2 = LoRA(model.blocks[1].mlp.w2)
    with pytest.raises(TypeError, match=r"SwiGLU\.w2 is LoRA, not nn.Linear, .*; initialise the model before"):
        model.init_weights()
    model = small()
    model.head = nn.Linear(DIM, 3, bias=False)  # a head of the user's own is initialised like ours
    model.init_weights()
    assert 0.01 < model.head.weight.std() < 0.03
