"""The backbone: images of any size, training and freezing, activation checkpointing, errors."""

from collections import Counter

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch.utils._python_dispatch import TorchDispatchMode

from arm_backbone import ARCHS, ARM, ARMPyramid
from arm_backbone.arm import default_out_indices, find_trunk
from arm_backbone.checkpoint.load import load_trunk
from arm_backbone.classifier import ARMClassifier
from arm_backbone.drop_path import late_rates
from arm_backbone.pos_embed import resize_pos_embed
from arm_backbone.vmamba import VMamba


@pytest.fixture
def model(small_arch):
    torch.manual_seed(0)
    return ARM(small_arch, img_size=64)


def images(height=64, width=96, batch=2, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (16, 16), (15, 100), (128, 48)])
@pytest.mark.parametrize("cls_token", [None, "middle", "tail"])
def test_maps_of_any_size(small_arch, size, cls_token):
    maps = ARM(small_arch, img_size=64, cls_token=cls_token)(images(*size))
    grid = tuple(-(-s // 16) for s in size)
    assert [tuple(m.shape) for m in maps] == [(2, 32, *grid)] * 4


def test_overlapping_patches_round_up_too(small_arch):
    maps = ARM(small_arch, img_size=64, patch_size=16, patch_stride=8)(images(50, 70))
    assert maps[0].shape == (2, 32, 7, 9)


def test_image_size_as_a_number_a_pair_or_a_list(small_arch):
    sizes = (64, (48, 80), [48, 80])  # configurations hold lists
    assert [ARM(small_arch, img_size=size).grid_size for size in sizes] == [(4, 4), (3, 5), (3, 5)]


def test_every_parameter_receives_a_gradient(small_arch):
    for cls_token in (None, "middle"):
        model = ARM(small_arch, img_size=64, cls_token=cls_token)
        sum((m * torch.randn_like(m)).sum() for m in model(images())).backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []


def test_recomputed_and_plain_blocks_agree(small_arch):
    results = []
    for with_cp in (False, "selective", "full"):
        torch.manual_seed(0)
        model = ARM(small_arch, img_size=64, drop_path_rate=0.5, with_cp=with_cp).train()
        torch.manual_seed(1)  # the same paths are dropped
        maps = model(images())
        sum(m.square().sum() for m in maps).backward()
        results.append([*maps, *(p.grad for p in model.parameters())])
    for plain, selective, full in zip(*results, strict=True):
        torch.testing.assert_close(selective, plain)
        torch.testing.assert_close(full, plain)


class Calls(TorchDispatchMode):
    """Counts the operators that are called, by name."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[str(function)] += 1
        return function(*args, **kwargs or {})

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter = Counter()


@pytest.mark.parametrize(("with_cp", "scans", "convolutions"), [(False, 4, 4), ("selective", 4, 8), ("full", 8, 8)])
def test_what_is_recomputed(small_arch, with_cp, scans, convolutions):
    """With "selective" the backward recomputes all but matmuls and scans, with "full" everything."""
    model = ARM(small_arch, img_size=64, with_cp=with_cp).train()
    with Calls() as calls:
        sum(m.sum() for m in model(images())).backward()
    assert calls.count["arm.cross_scan.default"] == scans
    assert calls.count["arm.cross_conv.default"] == convolutions
    assert calls.count["arm.cross_scan_backward.default"] == 4


def test_values_of_with_cp(small_arch, caplog):
    """True means "full", as in mmdet; the former name "all" is accepted with a warning, also in a configuration."""
    settings = {False: False, True: "full", "selective": "selective", "full": "full"}
    assert {given: ARM(small_arch, with_cp=given).with_cp for given in settings} == settings
    assert not caplog.records
    assert MODELS.build(dict(type="ARM", arch=small_arch, with_cp="all")).with_cp == "full"
    assert [record.message for record in caplog.records] == [
        'with_cp="all" is now called "full"; please change the configuration'
    ]


def test_blocks_run_when_their_output_is_requested(small_arch):
    model, ran = ARM(small_arch, img_size=64, out_indices=(0, 1)), []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    x, grid = model.embed(images())
    outputs = model.block_outputs(x, model.orders(grid))
    assert ran == [] and next(outputs).shape == x.shape and ran == [0]
    ran.clear()
    assert len(model(images())) == 2 and ran == [0, 1]  # no block after the last level


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_any_number_of_channels(small_arch, channels):
    maps = ARM(small_arch, img_size=64, in_chans=channels)(torch.randn(1, channels, 50, 70))
    assert [tuple(m.shape) for m in maps] == [(1, 32, 4, 5)] * 4


def test_trunk_in_a_model(small_arch):
    trunk = ARM(small_arch, img_size=64)
    assert find_trunk(trunk) == ("", trunk)
    assert find_trunk(torch.nn.ModuleDict(dict(neck=torch.nn.Linear(1, 1), backbone=trunk))) == ("backbone.", trunk)
    assert find_trunk(torch.nn.Linear(1, 1)) == (None, None)
    assert trunk.layer_depth("blocks.2.norm1.weight") == 3 and trunk.layer_depth("out_norms.0.weight") == 5
    with pytest.raises(AttributeError, match="neck"):
        trunk.layer_depth("neck.weight")


def test_frozen_stages_neither_train_nor_drop_paths(small_arch):
    model = ARM(small_arch, img_size=64, drop_path_rate=0.9, frozen_stages=2).train()
    trained = {
        n.split(".")[1] if n.startswith("blocks") else n.split(".")[0]
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    assert trained == {"2", "3", "out_norms"}
    assert not model.blocks[1].training and model.blocks[2].training
    frozen = ARM(small_arch, img_size=64, frozen_stages=0)
    assert not frozen.pos_embed.requires_grad and frozen.blocks[0].norm1.weight.requires_grad


def test_drop_path_acts_in_training_only(small_arch):
    model = ARM(small_arch, img_size=64, drop_path_rate=0.9)
    model.eval()
    torch.testing.assert_close(model(images())[-1], model(images())[-1])
    model.train()
    many = images(batch=16)
    assert not torch.equal(model(many)[-1], model(many)[-1])


@pytest.mark.parametrize("position", [(5, 9), (40, 90), (63, 0), (17, 52)])
def test_a_bright_pixel_peaks_in_its_cell_on_every_level(position):
    """From the image to the pyramid nothing is transposed, flipped or shifted.

    Random weights mix tokens, so the pixel's own cell is found by the largest change of the features.
    """
    torch.manual_seed(0)
    model = ARM(dict(embed_dims=32, num_layers=4), img_size=64).eval()
    pyramid = ARMPyramid(32, dict(type="GN", num_groups=32)).eval()
    image = torch.zeros(1, 3, 64, 112)
    bright = image.clone()
    bright[..., position[0], position[1]] = 100.0
    with torch.no_grad():
        levels = zip((4, 8, 16, 32), pyramid(model(bright)), pyramid(model(image)), strict=True)
    for stride, with_pixel, without in levels:
        change = (with_pixel - without).abs().sum(1)[0]
        peak = divmod(change.argmax().item(), change.shape[1])
        # finer levels resolve the 16-pixel patch, not the pixel
        unit = max(stride, 16)
        assert tuple(p * stride // unit for p in peak) == tuple(p // unit for p in position), stride


def test_transposed_image_gives_transposed_features(small_arch):
    """If all directions have the same parameters, the model treats rows and columns the same."""
    torch.manual_seed(0)
    model = ARM(small_arch, img_size=(48, 80)).eval()
    with torch.no_grad():
        weight = model.patch_embed.proj.weight
        weight.copy_((weight + weight.transpose(2, 3)) / 2)
        for block in model.blocks:
            for parameter in (p for n, p in block.mixer.named_parameters() if "proj.weight" not in n):
                parameter.copy_(parameter[:1].expand_as(parameter))
        x = images(48, 80)
        maps = model(x)
        model.pos_embed = torch.nn.Parameter(model.pos_embed.transpose(1, 2))
        transposed = model(x.transpose(2, 3))
    for plain, turned in zip(maps, transposed, strict=True):
        torch.testing.assert_close(turned.transpose(2, 3), plain, rtol=1e-4, atol=1e-5)


def test_position_embedding_follows_the_image(model):
    """Every forward pass resizes the table to the image, and the table gets its gradient through the resize."""
    grid = model(images(96, 128))[0].shape[2:]
    assert grid == (6, 8)
    resized = resize_pos_embed(model.pos_embed, 6, 8)
    assert resized.shape == (1, 6, 8, 32) and resized.requires_grad
    assert resize_pos_embed(model.pos_embed, 4, 4) is model.pos_embed
    with torch.no_grad():
        before = model(images(96, 128))[-1]
        model.pos_embed += torch.linspace(0, 1, 4)[:, None]
        assert not torch.equal(model(images(96, 128))[-1], before)


def test_names_resolve_in_every_scope(small_arch):
    for scope in ("mmengine", "mmdet", "mmseg"):
        with DefaultScope.overwrite_default_scope(scope):
            assert MODELS.build(dict(type="ARM", arch=small_arch, img_size=64)).embed_dims == 32
            assert len(MODELS.build(dict(type="ARMPyramid", in_channels=32, norm_cfg=dict(type="BN"))).scales) == 4


def test_sizes_of_the_family():
    """Parameters in millions of the 224-pixel backbone with four scans; the paper's Table 1 counts the classifier."""
    expected = dict(tiny=5.8, small=21.8, base=84.3, large=296.0, huge=661.2)
    for name in ARCHS:
        with torch.device("meta"):
            count = sum(p.numel() for p in ARM(name).parameters()) / 1e6
        assert count == pytest.approx(expected[name], abs=0.05), name


def test_levels_and_drop_path_by_depth():
    assert default_out_indices(12) == (3, 5, 7, 11)
    assert default_out_indices(24) == (7, 11, 15, 23)
    assert default_out_indices(4) == (0, 1, 2, 3)
    assert late_rates(0.2, 4) == pytest.approx([0.0, 0.0, 0.2 / 3, 0.4 / 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(arch="bas"), "arch='bas'.*tiny, small, base"),
        (dict(arch=dict(embed_dims=32)), "exactly the keys"),
        (dict(scans=3), "scans=3"),
        (dict(with_cp="some"), "with_cp='some'.*'selective' or 'full'"),
        (dict(out_indices=(3, 1)), "out_indices=.*ascending"),
        (dict(out_indices=(0, 12)), "out_indices=.*0 to 11"),
        (dict(frozen_stages=13), "frozen_stages=13"),
        (dict(img_size=8), "smaller than one patch"),
        (dict(cls_token="head"), "cls_token='head'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ARM(**{"arch": "tiny"} | arguments)


def test_pyramid_needs_four_maps_and_a_known_norm():
    with pytest.raises(ValueError, match="type='LN'"):
        ARMPyramid(32, dict(type="LN"))
    with pytest.raises(ValueError, match="4 maps, not 1"):
        ARMPyramid(32, dict(type="BN"))([torch.zeros(1, 32, 4, 4)])


@pytest.mark.parametrize("kind", ["ARM", "VMamba"])
def test_what_no_output_depends_on_is_frozen(kind):
    """Otherwise distributed training stops at parameters without a gradient."""
    if kind == "ARM":
        model = ARM(dict(embed_dims=32, num_layers=4), img_size=32, out_indices=(0, 2))
    else:
        model = VMamba(dict(widths=(16, 32, 64, 128), depths=(1, 1, 1, 1), expand=1), out_indices=(0, 1, 2))
    sum(x.square().sum() for x in model(torch.randn(1, 3, 32, 32))).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert any(not p.requires_grad for name, p in model.named_parameters() if "pos_embed" not in name)


def test_a_classifier_that_pools_by_attention_loads():
    first, second = (ARMClassifier(dict(embed_dims=32, num_layers=2), 32, global_pool="map") for _ in range(2))
    load_trunk(second, first.state_dict(), "file")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
