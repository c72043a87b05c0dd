"""What timm's tools and its tests of vision transformers do with a registered model."""

import logging

import pytest
import timm
import torch
from mmengine.model import BaseModule
from timm.models._manipulate import group_parameters
from torch import Tensor, nn

from arm_backbone.arm import ARM
from arm_backbone.classifier import ARMClassifier

NAME = "arm_tiny_patch16_224"
DIM, BLOCKS = 32, 4


def small(**arguments) -> ARMClassifier:
    torch.manual_seed(0)
    return timm.create_model(
        NAME, **dict(arch=dict(embed_dims=DIM, num_layers=BLOCKS), img_size=64, num_classes=10) | arguments
    ).eval()


def images(height: int = 64, width: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------------------- row 17: patch size


@pytest.mark.parametrize("build", [ARM, ARMClassifier])
def test_row_17_stride_follows_the_patch_size(build):
    model = build(arch=dict(embed_dims=DIM, num_layers=BLOCKS), img_size=64, patch_size=8)
    assert model.patch_stride == 8 and model.grid_size == (8, 8)


@torch.no_grad()
def test_row_17_every_pixel_is_read_through_timm():
    model = small(patch_size=8)
    x = images()
    base = model(x)
    x[:, :, 12, 12] += 10  # with a stride of 16 this pixel would lie between the patches
    assert not torch.equal(model(x), base) and {info["reduction"] for info in model.feature_info} == {8}


@pytest.mark.parametrize("stride", [17, 0, -1])
@pytest.mark.parametrize("build", [ARM, ARMClassifier])
def test_row_17_stride_that_leaves_out_pixels_is_refused(build, stride):
    with pytest.raises(ValueError, match=f"patch_stride={stride} with patch_size=16"):
        build(arch="tiny", patch_stride=stride)


# ------------------------------------------------------------------------------- row 18: finetuned heads


def saved(folder, classes: int) -> tuple[dict[str, Tensor], dict]:
    state = {name: value + 0.1 for name, value in small(num_classes=classes).state_dict().items()}
    torch.save(state, folder / "weights.pth")
    return state, dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(folder / "weights.pth")))


def test_row_18_head_for_the_same_classes_is_kept(tmp_path):
    state, source = saved(tmp_path, 10)
    loaded = small(num_classes=10, **source)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert loaded.pretrained_cfg["num_classes"] == 10
    assert small().pretrained_cfg["num_classes"] == 1000  # the registered configuration is not changed
    path = tmp_path / "weights.pth"
    assert torch.equal(small(num_classes=10, checkpoint_path=path).head.weight, state["head.weight"])
    with pytest.raises(RuntimeError, match="head.weight"):
        small(num_classes=7, checkpoint_path=path)


@pytest.mark.parametrize("classes", [7, 1000])
def test_row_18_dropped_head_is_named_with_the_reason(tmp_path, caplog, classes):
    state, source = saved(tmp_path, 10)
    with caplog.at_level(logging.WARNING):
        loaded = small(num_classes=classes, **source)
    assert loaded.head.out_features == classes and torch.equal(loaded.norm.weight, state["norm.weight"])
    message = next(r.getMessage() for r in caplog.records if "head.weight" in r.getMessage())
    assert f"head.weight (for 10 classes, the model has {classes})" in message and "not in the" not in message


# ------------------------------------------------------------------------------------ row 53: contract


@pytest.mark.parametrize("pool", ["avg", "map"])
def test_row_53_device_and_dtype_of_the_constructor(pool):
    model = small(dtype=torch.bfloat16, device="cpu", global_pool=pool)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(images().bfloat16()).isfinite().all()
    empty = small(device="meta", global_pool=pool)
    assert all(p.is_meta for p in empty.parameters())
    empty.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.fill_(torch.nan)
    empty.init_weights()
    assert empty(images()).isfinite().all()
    for name, parameter in small(global_pool=pool).named_parameters():
        assert empty.get_parameter(name).std(correction=0).item() == pytest.approx(
            parameter.std(correction=0).item(), rel=0.6, abs=1e-3
        ), name


def test_row_53_weights_survive_in_a_model_of_mmengine():
    """mmengine's `init_weights` calls that of every child, which would replace loaded weights."""
    parent = BaseModule()
    parent.child = small()
    before = parent.child.head.weight.clone()
    parent.init_weights()
    assert torch.equal(parent.child.head.weight, before)


def test_row_53_channels_and_mode():
    model = small(in_chans=4)
    assert model.in_chans == 4 and model(images(channels=4)).shape == (2, 10)
    model.eval().reset_classifier(3)
    assert not any(module.training for module in model.modules())
    model.train().reset_classifier(5)
    assert model.head.training


@torch.no_grad()
def test_row_53_input_size_can_be_changed():
    model, x = small(), images(64, 96)
    expected = model(x)  # interpolates at every call
    model.set_input_size((64, 96))
    assert model.pos_embed.shape == (1, 4, 6, DIM) and model.img_size == (64, 96) and model.grid_size == (4, 6)
    torch.testing.assert_close(model(x), expected)
    assert timm.models.get_model_input_config(model)["input_size"] == (3, 64, 96)
    model.set_input_size(patch_size=8)
    assert model.grid_size == (8, 12) and model.patch_stride == 8 and model(x).isfinite().all()
    assert model.forward_intermediates(x, 1, intermediates_only=True)[0].shape[2:] == (8, 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for wrong, message in ((dict(patch_size=(8, 16)), "square"), (dict(img_size=4), "smaller than one patch")):
        with pytest.raises(ValueError, match=message):
            model.set_input_size(**wrong)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("pool", ["avg", "map"])
def test_row_53_layers_are_those_of_our_layer_decay(pool):
    model = small(global_pool=pool)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers == {name: model.layer_depth(name) for name, _ in model.named_parameters()}


def test_row_53_wrong_pools_raise_timms_error():
    for build in (small, small().reset_classifier):
        with pytest.raises(AssertionError, match="'median' is unknown"):
            build(num_classes=3, global_pool="median")
    for wrong, message in (("median", "is unknown"), ("map", "create the model with it")):
        with pytest.raises(AssertionError, match=message):
            small().pool(torch.zeros(2, 17, DIM), wrong)
    with pytest.raises(AssertionError, match="create the model with it"):
        small().reset_classifier(3, "map")
    with pytest.raises(AssertionError, match="needs a class token"):
        ARMClassifier(arch="tiny", cls_token=None, global_pool="token")


@pytest.mark.parametrize("cls_token", [None, "middle", "tail"])
@torch.no_grad()
def test_row_53_pools_of_the_patches(cls_token):
    model = ARMClassifier(dict(embed_dims=DIM, num_layers=BLOCKS), 64, cls_token=cls_token).eval()
    tokens = model.forward_features(images())
    patches = model.patch_tokens(tokens)
    assert torch.equal(model.pool(tokens, "max"), patches.amax(1))
    torch.testing.assert_close(model.pool(tokens, "avg"), patches.mean(1))
    torch.testing.assert_close(model.pool(tokens, "avgmax"), (patches.mean(1) + patches.amax(1)) / 2)
    assert model.pool(tokens, "") is tokens


@pytest.mark.parametrize("pool", ["max", "avgmax", "map"])
def test_row_53_new_pools_train_and_can_be_replaced(pool):
    model = small(global_pool=pool).train()
    model(images()).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    model.reset_classifier(5, "avg")
    assert model(images()).shape == (2, 5) and model.state_dict().keys() == small().state_dict().keys()


def test_row_53_attention_pooling_starts_from_a_mean_pooled_file(tmp_path, caplog):
    state, source = saved(tmp_path, 10)
    model = small(global_pool="map", **source)
    assert torch.equal(model.head.weight, state["head.weight"]) and "attn_pool.latent" in caplog.text


@pytest.mark.parametrize("cls_token", ["middle", "tail"])
@torch.no_grad()
def test_row_53_intermediates_as_a_dict(cls_token):
    model, x = small(cls_token=cls_token), images(32, 64)
    whole, pairs = model.forward_intermediates(x, return_prefix_tokens=True)
    result = model.forward_intermediates(x, return_prefix_tokens=True, output_dict=True)
    assert torch.equal(result["image_features"], whole)
    for (patches, prefix), a, b in zip(
        pairs, result["image_intermediates"], result["image_intermediates_prefix"], strict=True
    ):
        assert torch.equal(patches, a) and torch.equal(prefix, b)
    assert model.forward_intermediates(x, 2, intermediates_only=True, output_dict=True).keys() == {
        "image_intermediates"
    }


# ------------------------------------------------------------------------------ an image of one patch


@pytest.mark.parametrize("cls_token", [None, "middle", "tail"])
@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
@torch.no_grad()
def test_image_of_one_patch_has_finite_features(cls_token, pool):
    model = ARMClassifier(dict(embed_dims=DIM, num_layers=BLOCKS), 16, cls_token=cls_token, global_pool=pool).eval()
    tokens = model.forward_features(images(16, 16))
    torch.testing.assert_close(model.pool(tokens), model.patch_tokens(tokens)[:, 0])


# ----------------------------------------------------------------------------------- row 54: export


@pytest.mark.parametrize(
    ("cls_token", "strict"),
    [("middle", False), (None, False), pytest.param("middle", True, marks=pytest.mark.slow, id="strict")],
)
@torch.no_grad()
def test_row_54_exported_classifier_takes_images_of_any_size(cls_token, strict):
    model = ARMClassifier(dict(embed_dims=DIM, num_layers=2), 64, cls_token=cls_token, num_classes=10).eval()
    _runs_at_any_size(model, (64, 64), strict)


@torch.no_grad()
def test_row_54_exported_backbone_takes_images_of_any_size():
    model = ARM(dict(embed_dims=DIM, num_layers=2), 64, cls_token="middle", out_indices=(0, 1)).eval()
    _runs_at_any_size(model, (70, 101), strict=False)


def _runs_at_any_size(model: nn.Module, example: tuple[int, int], strict: bool) -> None:
    """Export at one size and compare at others, multiples of the patch and not."""
    sizes = {2: torch.export.Dim("height", min=32, max=512), 3: torch.export.Dim("width", min=32, max=512)}
    program = torch.export.export(model, (images(*example),), dynamic_shapes=(sizes,), strict=strict).module()
    for height, width in ((64, 64), (48, 96), (50, 77), (32, 33)):
        x = images(height, width)
        found, expected = program(x), model(x)
        for a, b in zip(*((t,) if isinstance(t, Tensor) else t for t in (found, expected)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
