"""What timm's tools, and timm's tests of its own models, expect of the registered classifiers."""

import argparse
import re

import pytest
import timm
import timm.data
import timm.optim
import torch
from PIL import Image
from timm.models._manipulate import group_parameters
from torch import Tensor, nn

from arm_backbone.checkpoint.convert import convert
from arm_backbone.checkpoint.files import CheckpointError
from arm_backbone.classifier import ARMClassifier
from arm_backbone.optim import is_decayed
from arm_backbone.pos_embed import resize_pos_embed
from arm_backbone.timm_models import default_cfgs
from arm_backbone.vim import VimClassifier

NAME = "arm_tiny_patch16_224"
DIM, BLOCKS, CLASSES, SIZE, GRID = 32, 4, 10, 64, 4
MIDDLE = GRID * GRID // 2  # place of the class token


def small(name: str = NAME, **kwargs) -> nn.Module:
    """A small model under a registered name, always with the same weights."""
    torch.manual_seed(0)
    arguments = dict(arch=dict(embed_dims=DIM, num_layers=BLOCKS), img_size=SIZE, num_classes=CLASSES) | kwargs
    if arguments.get("cls_token", "middle") is None:  # create_model drops arguments that are None
        return ARMClassifier(**arguments).eval()
    return timm.create_model(name, **arguments).eval()


def images(height: int = SIZE, width: int = SIZE, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A model that all tests of this file share and must not change."""
    return small().requires_grad_(False)


def saved(folder, state: dict[str, Tensor], key: str | None = None) -> dict:
    """Save these tensors; return the arguments that make timm load them."""
    path = folder / "weights.pth"
    torch.save(state if key is None else {key: state, "args": argparse.Namespace(lr=1.0), "epoch": 3}, path)
    return dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


# ------------------------------------------------------------------------------------------- names


def test_registry_has_our_names_and_no_weights_to_fetch():
    ours = ["arm_*", "vim_*", "vmamba_*"]
    assert set(timm.list_models(ours)) == set(default_cfgs)
    assert timm.list_models(ours, pretrained=True) == []
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        small(pretrained=True)


@pytest.mark.parametrize("name", [name for name in default_cfgs if not name.startswith("vmamba")])
def test_every_name_builds_and_matches_its_cfg(name):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        cfg = model.default_cfg
        logits = model(torch.empty(2, *cfg["input_size"]))
    encoder, arch, stride = re.fullmatch(r"(arm|vim)_(\w+)_patch16(?:_stride(\d+))?_\d+", name).groups()
    arch = dict(arm=ARMClassifier, vim=VimClassifier)[encoder].archs[arch]
    size = int(name.rsplit("_", 1)[1])
    assert logits.shape == (2, 1000)
    assert isinstance(model, VimClassifier) == (encoder == "vim") and cfg["architecture"] == name
    assert cfg["input_size"] == (3, size, size) and model.img_size == (size, size)
    assert model.get_submodule(cfg["first_conv"]).in_channels == 3
    head = model.get_submodule(cfg["classifier"])
    assert head is model.get_classifier() and head.out_features == cfg["num_classes"] == model.num_classes
    assert model.global_pool == dict(arm="avg", vim="token")[encoder]
    assert cfg["pool_size"] is None  # pooling does not depend on the size
    assert model.num_features == model.head_hidden_size == arch["embed_dims"]
    assert len(model.blocks) == len(model.feature_info) == arch["num_layers"]
    assert {info["reduction"] for info in model.feature_info} == {int(stride or 16)}
    modules = dict(model.named_modules())
    assert all(info["module"] in modules and info["num_chs"] == model.num_features for info in model.feature_info)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (dict(), (64, 64, 3)),
        (dict(), (48, 80, 3)),  # not the size of the position table
        (dict(img_size=96), (96, 96, 3)),
        (dict(img_size=(32, 96)), (32, 96, 3)),
        (dict(in_chans=1), (64, 64, 1)),
        (dict(cls_token="tail", global_pool="token"), (64, 64, 3)),
        (dict(drop_rate=0.0, drop_path_rate=0.1), (64, 64, 3)),  # timm's train.py always passes drop_rate
        (dict(name="arm_base_patch16_stride8_448"), (64, 64, 3)),
    ],
)
def test_arguments_of_create_model(arguments, shape):
    height, width, channels = shape
    model = small(**arguments)
    assert model(images(height, width, channels=channels)).shape == (2, CLASSES)
    assert small(**arguments | dict(num_classes=3)).head.out_features == 3
    if "img_size" in arguments:
        assert model.pos_embed.shape == (1, height // 16, width // 16, DIM)


@torch.no_grad()
def test_drop_rate_acts_before_the_head_in_training_only():
    model = small(drop_rate=0.5)
    assert torch.equal(model(images()), small()(images()))
    model.train()
    tokens = model.forward_features(images())
    assert not torch.equal(model.forward_head(tokens), model.forward_head(tokens))


def test_state_dict_makes_the_same_model(model):
    other = small(num_classes=CLASSES)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    assert not torch.equal(other(images()), model(images()))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(images()), model(images()))


# ---------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("pool", ["avg", "token"])
@pytest.mark.parametrize("cls_token", ["middle", "tail"])
def test_every_parameter_gets_a_gradient(pool, cls_token):
    model = small(global_pool=pool, cls_token=cls_token).train()
    model(images()).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    without += [n for n, p in model.named_parameters() if not p.grad.any()]
    assert without == []


def test_recomputed_gradients_are_the_same():
    gradients = []
    for enable in (False, True):
        model = small(drop_path_rate=0.5).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(2)  # the same paths are dropped
        model(images()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_recomputing_keeps_fewer_activations():
    kept = []
    for enable in (False, True):
        model, sizes = small().train(), []
        model.set_grad_checkpointing(enable)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            model(images())
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


def test_layers_of_the_group_matcher(model):
    """The embeddings and each block form a group; the last norm belongs to the head, as in `layer_depth`."""
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers.keys() == {name for name, _ in model.named_parameters()}
    for name, layer in layers.items():
        assert layer == model.layer_depth(name), name
    assert layers["head.weight"] == layers["norm.weight"] == max(layers.values()) == BLOCKS + 1
    assert group_parameters(model, model.group_matcher(coarse=True), reverse=True).keys() == layers.keys()


def test_layer_decay_rises_to_the_head():
    model = small()
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert len(scale) == sum(len(group["params"]) for group in optimizer.param_groups)  # each once
    assert scale.keys() == {id(p) for p in model.parameters()}
    for i, block in enumerate(model.blocks):
        assert {scale[id(p)] for p in block.parameters()} == {0.5 ** (BLOCKS - i)}
    assert scale[id(model.pos_embed)] == scale[id(model.patch_embed.proj.weight)] == 0.5 ** (BLOCKS + 1)
    assert scale[id(model.head.weight)] == 1


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_timm_decays_what_the_reference_code_decays(layer_decay):
    """With a leading dimension of directions, biases and D are matrices, which timm would decay by their rank."""
    model = small()
    names = {name for name, _ in model.named_parameters()}
    assert model.no_weight_decay() and model.no_weight_decay() <= names
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", weight_decay=0.05, layer_decay=layer_decay)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    wrong = [n for n, p in model.named_parameters() if (decay[id(p)] > 0) != is_decayed(n, p, "reference")]
    assert wrong == []


# ----------------------------------------------------------------------------------- head and pooling


@pytest.mark.parametrize(
    ("arguments", "by_hand"),
    [
        (dict(), lambda x: (x[:, :MIDDLE].mean(1) + x[:, MIDDLE + 1 :].mean(1)) / 2),
        (dict(global_pool="token"), lambda x: x[:, MIDDLE]),
        (dict(cls_token="tail"), lambda x: x[:, :-1].mean(1)),
        (dict(cls_token="tail", global_pool="token"), lambda x: x[:, -1]),
        (dict(cls_token=None), lambda x: x.mean(1)),
        (dict(global_pool=""), lambda x: x),
    ],
)
@torch.no_grad()
def test_forward_is_features_pooling_and_head(arguments, by_hand):
    model = small(**arguments)
    tokens = model.forward_features(images())
    assert tokens.shape == (2, GRID * GRID + (arguments.get("cls_token", "") is not None), DIM)
    pooled = model.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(pooled, by_hand(tokens))
    torch.testing.assert_close(model(images()), model.head(pooled))
    assert torch.equal(model.forward_head(tokens), model(images()))


@torch.no_grad()
def test_reset_classifier():
    model = small()
    tokens = model.forward_features(images())
    pooled = model.forward_head(tokens, pre_logits=True)
    model.reset_classifier(7)
    assert model(images()).shape == (2, 7) and model.num_classes == 7
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.3) and not model.head.bias.any()
    model.reset_classifier(0)
    assert torch.equal(model(images()), pooled) and model.num_classes == 0
    model.reset_classifier(0, "")
    assert torch.equal(model(images()), tokens)
    model.reset_classifier(5, "token")
    assert model(images()).shape == (2, 5) and model.global_pool == "token"
    with pytest.raises(ValueError, match="'median'"):
        model.reset_classifier(5, "median")
    with pytest.raises(ValueError, match="needs a class token"):
        small(cls_token=None).reset_classifier(5, "token")


def test_new_head_follows_the_model():
    model = small().double()
    model.reset_classifier(7)
    assert model(images().double()).dtype == torch.float64


# ---------------------------------------------------------------------------------------- features


@pytest.mark.parametrize(
    ("out_indices", "blocks"), [(None, [1, 2, 3]), ((0, 2), [0, 2]), ((-4, -2), [0, 2]), (1, [3]), ([3], [3])]
)
@torch.no_grad()
def test_features_only(model, out_indices, blocks):
    """The maps match feature_info and those of the whole model; blocks after the last one are removed."""
    given = {} if out_indices is None else dict(out_indices=out_indices)
    extractor = small(features_only=True, **given)
    extractor.load_state_dict({f"model.{name}": value for name, value in model.state_dict().items()}, strict=False)
    assert len(extractor.model.blocks) == blocks[-1] + 1
    assert extractor.feature_info.module_name() == [f"blocks.{i}" for i in blocks]
    x = images(64, 96)
    maps = extractor(x)
    _, expected = model.forward_intermediates(x, indices=blocks)
    for found, whole, channels, reduction in zip(
        maps, expected, extractor.feature_info.channels(), extractor.feature_info.reduction(), strict=True
    ):
        assert found.shape == (2, channels, 64 // reduction, 96 // reduction)
        assert torch.equal(found, whole)


@pytest.mark.parametrize("cls_token", [None, "middle", "tail"])
@torch.no_grad()
def test_intermediates_agree_with_one_another(cls_token):
    model, x = small(cls_token=cls_token), images(32, 96)
    place = {None: None, "middle": 2 * 6 // 2, "tail": 2 * 6}[cls_token]
    features, maps = model.forward_intermediates(x)
    assert torch.equal(features, model.forward_features(x))
    assert [tuple(m.shape) for m in maps] == [(2, DIM, 2, 6)] * BLOCKS

    tokens = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    for map_, sequence in zip(maps, tokens, strict=True):
        assert torch.equal(map_.flatten(2).transpose(1, 2), sequence)

    normed = model.forward_intermediates(x, indices=1, output_fmt="NLC", norm=True, intermediates_only=True)
    patches = [i for i in range(features.shape[1]) if i != place]
    assert torch.equal(normed[0], features[:, patches])

    last, early = model.forward_intermediates(x, indices=[0, -3], stop_early=True)
    assert [torch.equal(e, m) for e, m in zip(early, maps[:2], strict=True)] == [True, True]
    whole, same = model.forward_intermediates(x, indices=[0, -3])
    assert torch.equal(whole, features) and all(torch.equal(s, e) for s, e in zip(same, early, strict=True))
    assert torch.equal(last[:, patches], model.norm(tokens[1]))  # stopped after block 1

    if cls_token is not None:
        _, pairs = model.forward_intermediates(x, norm=True, output_fmt="NLC", return_prefix_tokens=True)
        assert [tuple(prefix.shape) for _, prefix in pairs] == [(2, 1, DIM)] * BLOCKS
        assert torch.equal(pairs[-1][1][:, 0], features[:, place])
        assert torch.equal(pairs[-1][0], normed[0])


def test_intermediates_refuse_unknown_formats_and_blocks(model):
    with pytest.raises(ValueError, match="output_fmt='NHWC'"):
        model.forward_intermediates(images(), output_fmt="NHWC")
    with pytest.raises(AssertionError, match="out of range"):
        model.forward_intermediates(images(), indices=[BLOCKS])


# -------------------------------------------------------------------------------------------- data


def test_transform_resizes_the_whole_image_to_a_square():
    """The reference code does this; a centre crop of this wide image would contain neither strip."""
    config = timm.data.resolve_model_data_config(small(img_size=224))
    assert config["input_size"] == (3, 224, 224) and config["interpolation"] == "bicubic"
    image = Image.new("RGB", (800, 100))
    image.paste((255, 0, 0), (0, 0, 160, 100))
    image.paste((0, 0, 255), (640, 0, 800, 100))
    pixels = timm.data.create_transform(**config, is_training=False)(image)
    assert pixels.shape == (3, 224, 224)
    colours = pixels * torch.tensor(config["std"])[:, None, None] + torch.tensor(config["mean"])[:, None, None]
    for column, colour in ((5, (1, 0, 0)), (112, (0, 0, 0)), (218, (0, 0, 1))):
        torch.testing.assert_close(
            colours[:, 10:-10, column], torch.tensor(colour).float()[:, None].expand(3, 204), atol=0.01, rtol=0
        )


def test_large_images_are_not_cropped():
    config = timm.data.resolve_model_data_config(small("arm_base_patch16_384", img_size=384))
    assert config["input_size"] == (3, 384, 384) and config["crop_pct"] == 1.0


# ----------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("cls_token", ["middle", "tail"])
@pytest.mark.parametrize("official", [False, True], ids=["ours", "authors"])
@torch.no_grad()
def test_files_of_both_layouts_load(official, cls_token, tmp_path):
    model = small(cls_token=cls_token, num_classes=1000)
    state = model.state_dict()
    if official:
        state, _ = convert(state, "official-finetune", cls_token=cls_token)
        assert state.keys() != model.state_dict().keys()
    weights = saved(tmp_path, state, "model" if official else None)
    torch.manual_seed(5)
    other = small(cls_token=cls_token, num_classes=1000, **weights)
    assert torch.equal(other(images()), model(images()))

    extractor = small(cls_token=cls_token, features_only=True, **weights)
    _, maps = model.forward_intermediates(images(), indices=[1, 2, 3])
    assert all(torch.equal(a, b) for a, b in zip(extractor(images()), maps, strict=True))
    assert torch.equal(
        small(cls_token=cls_token, num_classes=0, **weights)(images()),
        model.forward_head(model.forward_features(images()), pre_logits=True),
    )


def trunk(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def other_weights(model: nn.Module) -> dict[str, Tensor]:
    """A state dict that differs from that of any new model."""
    generator = torch.Generator().manual_seed(3)
    return {n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in model.state_dict().items()}


def test_other_classes_get_a_fresh_head_on_the_same_trunk(tmp_path):
    state = other_weights(small(num_classes=1000))
    model = small(num_classes=7, **saved(tmp_path, state))
    assert same(trunk(model.state_dict()), trunk(state))
    assert model.head.weight.shape == (7, DIM) and not model.head.bias.any()
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.3)


def test_a_finetuned_head_is_kept_if_the_overlay_gives_its_classes(tmp_path):
    state = other_weights(small(num_classes=7))
    weights = saved(tmp_path, state)
    weights["pretrained_cfg_overlay"]["num_classes"] = 7
    assert same(small(num_classes=7, **weights).state_dict(), state)
    assert same(small(num_classes=7, checkpoint_path=tmp_path / "weights.pth").state_dict(), state)


def test_a_head_for_other_classes_is_not_loaded(tmp_path, caplog):
    state = other_weights(small(num_classes=7))
    model = small(num_classes=1000, **saved(tmp_path, state))
    assert same(trunk(model.state_dict()), trunk(state)) and model.head.out_features == 1000
    assert "head.weight" in caplog.text


def test_a_backbone_starts_a_classifier_and_says_what_is_new(tmp_path, caplog):
    state = other_weights(small(num_classes=1000))
    backbone, _ = convert(state, "backbone")
    model = small(num_classes=1000, **saved(tmp_path, backbone, "state_dict"))
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state if not name.startswith(("norm.", "head.")))
    assert all(name in caplog.text for name in ("norm.weight", "norm.bias", "head.weight", "head.bias"))


def test_position_table_follows_the_image_size(tmp_path):
    state = other_weights(small(num_classes=1000))
    model = small(num_classes=1000, img_size=96, **saved(tmp_path, state))
    assert torch.equal(model.pos_embed, resize_pos_embed(state["pos_embed"], 6, 6))
    assert torch.equal(model.cls_pos_embed, state["cls_pos_embed"])


@torch.no_grad()
def test_grey_images_take_the_sum_of_the_colours_filters(tmp_path):
    """timm's rule: a grey image gives the same output as its copy in three equal channels."""
    colour = small(num_classes=1000)
    grey = small(num_classes=1000, in_chans=1, **saved(tmp_path, colour.state_dict()))
    assert torch.equal(grey.patch_embed.proj.weight, colour.patch_embed.proj.weight.sum(1, keepdim=True))
    x = images(channels=1)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_a_file_of_another_model_is_refused(tmp_path):
    state = small(arch=dict(embed_dims=DIM, num_layers=BLOCKS + 1)).state_dict()
    with pytest.raises(CheckpointError, match=f"blocks.{BLOCKS}"):
        small(**saved(tmp_path, state))


# ------------------------------------------------------------------------------------------ export


@pytest.mark.parametrize("batch", [None, torch.export.Dim("batch")], ids=["fixed", "any-batch"])
@torch.no_grad()
def test_export(model, batch):
    """The exported program contains every scan as one operator."""
    program = torch.export.export(model, (images(),), dynamic_shapes=None if batch is None else ({0: batch},))
    scans = [node for node in program.graph.nodes if node.target == torch.ops.arm.cross_scan.default]
    assert len(scans) == BLOCKS
    x = images(batch=2 if batch is None else 5)
    torch.testing.assert_close(program.module()(x), model(x))
