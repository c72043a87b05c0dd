"""VMamba as a dense backbone and as a model of timm: maps of any image, gradients, options, errors."""

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from arm_backbone import VMamba, VMambaClassifier, init_parameters
from arm_backbone.openmmlab import ARMOptimWrapperConstructor
from arm_backbone.ops import cross_scan, scan_backend
from arm_backbone.ss2d import SS2D, ss2d_orders
from arm_backbone.timm_models import default_cfgs
from arm_backbone.vmamba import VMAMBA_ARCHS
from tests.helpers.scans import assert_close
from tests.helpers.small_models import VMAMBA_ARCH

WIDTHS = VMAMBA_ARCH["widths"]


def build(model: type[nn.Module] = VMamba, **arguments) -> nn.Module:
    torch.manual_seed(0)
    return model(**dict(arch=VMAMBA_ARCH) | arguments)


def small(**arguments) -> nn.Module:
    """A small model under a registered name of timm, in evaluation mode."""
    torch.manual_seed(0)
    return timm.create_model("vmamba_tiny_224", **dict(arch=VMAMBA_ARCH, num_classes=10) | arguments).eval()


def images(height: int = 64, width: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    outputs = model(x)
    sum(y.float().square().mean() for y in (outputs if isinstance(outputs, tuple) else [outputs])).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# ------------------------------------------------------------------------------------------- dense


@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 56), (33, 97), (1, 5)])
def test_maps_of_any_image(height, width):
    maps = build().eval()(images(height, width))
    expected = [(2, c, -(-height // s), -(-width // s)) for c, s in zip(WIDTHS, (4, 8, 16, 32), strict=True)]
    assert [tuple(x.shape) for x in maps] == expected
    assert all(x.is_contiguous() and x.isfinite().all() for x in maps)


def test_each_level_has_its_own_norm_and_only_the_asked_levels_are_computed():
    whole, part = build().eval(), build(out_indices=(0, 2)).eval()
    torch.testing.assert_close(list(part(images())), [whole(images())[i] for i in (0, 2)])
    assert [norm.normalized_shape for norm in part.out_norms] == [(WIDTHS[0],), (WIDTHS[2],)]
    part.stages[3] = part.stages[2].downsample = None  # not touched
    part(images())
    maps = whole(images())
    assert all(x.mean(1).abs().max() < 1e-5 for x in maps)


def test_every_parameter_gets_a_gradient_and_no_image_depends_on_another():
    model = build().train()
    assert not [name for name, grad in gradients(model, images(48, 80)).items() if grad is None or not grad.any()]
    alone, both = model(images()[:1]), model(images())
    assert all(torch.allclose(x[:1], y, atol=1e-5) for x, y in zip(both, alone, strict=True))


def test_frozen_stages():
    model = build(frozen_stages=2, drop_path_rate=0.5).train()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(("stem.", "stages.0.", "stages.1."))}
    assert not model.stages[1].training and model.stages[2].training
    assert not any(p.requires_grad for p in build(frozen_stages=0).stem.parameters())


@pytest.mark.parametrize("with_cp", ["selective", "full"])
def test_activation_checkpointing_changes_nothing(with_cp):
    expected, actual = (gradients(build(with_cp=value).train(), images()) for value in (False, with_cp))
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad, msg=name)


def test_drop_path_rises_linearly_to_the_rate_of_the_last_block():
    model = build(VMambaClassifier, drop_path_rate=0.4).train()
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert not torch.equal(model(images()), model(images()))


def test_autocast_keeps_the_stream_and_the_scan_in_float32():
    model, seen = build().train(), {}
    block = model.stages[1].blocks[0]
    block.register_forward_hook(lambda module, args, output: seen.update(stream=args[0].dtype, out=output.dtype))
    block.mixer.scan = lambda u, orders, scan=block.mixer.scan: seen.setdefault("scan", scan(u, orders))
    plain = model(images())
    with torch.autocast("cpu", torch.bfloat16):
        maps = model(images())
        found = gradients(model, images())
    assert (seen["stream"], seen["out"], seen["scan"].dtype) == (torch.float32,) * 3
    assert all((x.float() - y).abs().max() < 0.1 * y.abs().max() for x, y in zip(maps, plain, strict=True))
    assert all(grad.isfinite().all() for grad in found.values())


def test_half_precision_weights():
    maps = build().bfloat16().eval()(images().bfloat16())
    assert all(x.dtype == torch.bfloat16 and x.isfinite().all() for x in maps)


@pytest.mark.parametrize("d_state", [1, 4])
def test_back_ends_agree_on_the_scan(d_state):
    """One state, a sum and one map for all directions: ARM has none of these."""
    torch.manual_seed(0)
    mixer, orders = SS2D(32, 2, d_state), ss2d_orders(5, 7)
    x, found = torch.randn(2, 5, 7, 32), {}
    for backend in ("reference", "torch", "cpu"):
        with scan_backend(backend):
            loss = mixer(x, orders).square().sum()
            found[backend] = torch.autograd.grad(loss, list(mixer.parameters()))
    for backend in ("torch", "cpu"):
        for grad, expected in zip(found[backend], found["reference"], strict=True):
            assert_close(grad, expected, 1e-5)


def test_the_sum_is_four_times_the_mean():
    torch.manual_seed(0)
    u, delta, B, C = (torch.randn(1, 4, 6, n) for n in (8, 8, 1, 1))
    tensors = u, delta, -torch.rand(4, 8, 1), B, C, torch.ones(4, 8), torch.zeros(4, 8), ss2d_orders(2, 3)
    torch.testing.assert_close(cross_scan(*tensors, reduce="sum"), 4 * cross_scan(*tensors, reduce="mean"))


# --------------------------------------------------------------------------------------- optimizer


def wrapper_groups(model: nn.Module, **paramwise) -> dict[str, tuple[float, bool]]:
    """Name -> (learning rate, whether it decays)."""
    cfg = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.05))
    groups = ARMOptimWrapperConstructor(cfg, paramwise)(model).optimizer.param_groups
    return {name: (group["lr"], group["weight_decay"] > 0) for group in groups for name in group["param_names"]}


def test_weight_decay_as_published_and_as_usual_in_dense_prediction():
    model = build(VMambaClassifier)
    published = {name for name, (_, decays) in wrapper_groups(model, decay_exempt="timm").items() if decays}
    for name, parameter in model.named_parameters():  # no vectors (D is one there), no biases of layers
        assert (name in published) == (parameter.ndim > 1 and not name.endswith(".D")), name
    dense = {name for name, (_, decays) in wrapper_groups(model).items() if decays}
    assert published - dense == {n for n, _ in model.named_parameters() if n.endswith(("A_log", "dt_proj_bias"))}


def test_layer_decay_counts_blocks_through_the_stages():
    model = build()
    depth = {name: model.layer_depth(name) for name, _ in model.named_parameters()}
    assert {d for n, d in depth.items() if n.startswith("stem.")} == {0}
    assert depth["stages.0.blocks.0.mixer.D"] == 1
    assert depth["stages.0.downsample.conv.bias"] == depth["stages.1.blocks.0.mlp.fc1.bias"] == 2
    assert depth["stages.3.blocks.0.norm1.bias"] == model.num_layers == 5 and depth["out_norms.0.weight"] == 6
    rates = {name: rate for name, (rate, _) in wrapper_groups(model, layer_decay=0.5).items()}
    assert all(rates[name] == 0.5 ** (6 - depth[name]) for name in depth)
    with pytest.raises(AttributeError):
        model.layer_depth("stem.9")


# ------------------------------------------------------------------------------------------- timm


def test_registered_names_build_with_their_configuration():
    for arch, expected in VMAMBA_ARCHS.items():
        with torch.device("meta"):
            model = timm.create_model(f"vmamba_{arch}_224")
            assert model(torch.empty(1, 3, 96, 64)).shape == (1, 1000)
        cfg = model.default_cfg
        assert f"vmamba_{arch}_224" in default_cfgs and cfg["crop_pct"] == 0.875 and cfg["crop_mode"] == "center"
        assert model.get_submodule(cfg["first_conv"]).in_channels == 3
        assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
        assert [info["num_chs"] for info in model.feature_info] == list(expected["widths"])


def test_timms_contract_of_a_hierarchical_model(tmp_path):
    model, x = small(), images(64, 96)
    features = model.forward_features(x)
    assert features.shape == (2, 2, 3, WIDTHS[3]) and model.output_fmt == "NHWC"
    assert torch.equal(model.forward_head(features), model(x)) and model(x).shape == (2, 10)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    levels = small(features_only=True)
    assert levels.feature_info.reduction() == [4, 8, 16, 32] and levels.feature_info.channels() == list(WIDTHS)
    assert [tuple(y.shape[1:]) for y in levels(x)] == [(c, 64 // s, 96 // s) for c, s in zip(WIDTHS, (4, 8, 16, 32))]
    assert len(small(features_only=True, out_indices=(1, 3))(x)) == 2
    final, maps = model.forward_intermediates(x, norm=True)
    assert torch.equal(final, features) and torch.equal(maps[-1], features.permute(0, 3, 1, 2))
    early = model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], maps[1])
    for pool in ("max", "avgmax"):
        assert small(global_pool=pool)(x).shape == (2, 10)
    assert torch.equal(small(global_pool="", num_classes=0)(x), features)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7) and small(in_chans=1)(images(channels=1)).shape == (2, 10)
    for coarse in (False, True):
        grouped = group_parameters(model, model.group_matcher(coarse))
        assert sorted(sum(grouped.values(), [])) == sorted(name for name, _ in model.named_parameters())
    by_layer = group_parameters(model, model.group_matcher(), reverse=True)
    depth = {name: model.layer_depth(name) for name in by_layer}
    assert {depth[a] < depth[b] for a in by_layer for b in by_layer if by_layer[a] < by_layer[b] - 1} <= {True}
    model.set_grad_checkpointing()
    assert model.with_cp == "full"
    torch.save(small().state_dict(), tmp_path / "weights.pth")
    other = small(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "weights.pth")))
    assert torch.equal(other(x), small()(x))
    assert model.prune_intermediate_layers([1]) == [1]
    assert model(x).shape == (2, 8, 12, WIDTHS[1]) and len(model.stages) == 2


@pytest.mark.slow
def test_meta_device_compile_and_export():
    model, x = small(), images(32, 48)
    made = small(device="meta").to_empty(device="cpu")
    init_parameters(made)
    assert made(x).isfinite().all() and made.stages[0].blocks[0].mixer.D.eq(1).all()
    assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x), 1e-5)
    assert_close(torch.export.export(model, (x,)).module()(x), model(x), 1e-5)
    with pytest.raises(NotImplementedError, match=r"torch\.fx cannot trace"):
        torch.fx.symbolic_trace(model)
    with pytest.raises(NotImplementedError, match="TorchScript cannot compile"):
        torch.jit.script(model)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(arch="giant"), "arch='giant'.*tiny, small, base"),
        (dict(arch=dict(widths=(16, 32), depths=(1, 1), expand=2)), "need 4 numbers each"),
        (dict(arch=dict(widths=(16, 32, 48, 64))), "widths, depths and expand"),
        (dict(out_indices=(0, 4)), r"out_indices=\(0, 4\)"),
        (dict(out_indices=(1, 0)), r"out_indices=\(1, 0\)"),
        (dict(out_indices=()), r"out_indices=\(\)"),
        (dict(frozen_stages=5), "frozen_stages=5"),
        (dict(with_cp="some"), "with_cp='some'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_other_errors_are_named():
    with pytest.raises(ValueError, match="global_pool='token'"):
        build(VMambaClassifier, global_pool="token")
    with pytest.raises(ValueError, match="images must be"):
        build()(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match="dynamic_img_size=False: VMamba"):
        small(dynamic_img_size=False)
    with pytest.raises(ValueError, match="output_fmt='NLC'"):
        small().forward_intermediates(images(), output_fmt="NLC")
