"""Any timm model as a dense backbone: its maps are timm's, for any image; its weights fit or are refused in a line."""

import re

import pytest
import timm
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from safetensors.torch import save_file
from torch import nn

from arm_backbone.checkpoint.errors import CheckpointError
from arm_backbone.timm_backbone import TimmBackbone, TimmClassifier
from tests.helpers import hub_server

# plain and hierarchical models, narrowed by arguments of timm's
PLAIN = {
    "deit_base_patch16_224": dict(embed_dim=32, depth=4, num_heads=2),
    "deit3_base_patch16_224": dict(embed_dim=32, depth=4, num_heads=2),
    "aimv2_large_patch14_224": dict(embed_dim=32, depth=4, num_heads=2),
    "vit_base_patch14_reg4_dinov2": dict(embed_dim=32, depth=4, num_heads=2, img_size=224),
    "vit_base_patch16_dinov3": dict(embed_dim=32, depth=4, num_heads=2),
}
STAGES = {
    "regnety_002": {},
    "convnext_atto": dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
    "swin_tiny_patch4_window7_224": dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4)),
}
MODELS_OF_TIMM = PLAIN | STAGES
DEIT = ("deit_base_patch16_224", PLAIN["deit_base_patch16_224"])


def build(name: str, **arguments) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(name, **MODELS_OF_TIMM[name] | arguments)


@pytest.mark.parametrize("name", MODELS_OF_TIMM)
def test_maps_are_timms(name):
    backbone = build(name).eval()
    whole = timm.create_model(name, **backbone.arguments, num_classes=0).eval()
    whole.load_state_dict(backbone.model.state_dict(), strict=False)
    step = max(backbone.strides)
    images = torch.randn(2, 3, 6 * step, 4 * step)
    with torch.no_grad():
        backbone.out_norms = nn.ModuleList(nn.Identity() for _ in backbone.out_norms)
        maps = backbone(images)
        expected = whole.forward_intermediates(images, indices=list(backbone.out_indices), intermediates_only=True)
    assert len(maps) == 4 and all(torch.equal(x, y) for x, y in zip(maps, expected, strict=True))


@pytest.mark.parametrize("name", MODELS_OF_TIMM)
def test_any_image_gives_maps_and_a_gradient_for_every_parameter(name, size=(30, 97)):
    backbone = build(name)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.1)  # timm starts the last norm of a residual branch at 0
    maps = backbone(torch.randn(2, 3, *size))
    expected = [(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(backbone.channels, backbone.strides)]
    assert [tuple(x.shape) for x in maps] == expected
    plain = len(set(backbone.strides)) == 1
    assert plain == (name in PLAIN) and (plain or backbone.strides == (4, 8, 16, 32))
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", MODELS_OF_TIMM)
def test_optimizer_asks_the_model(name):
    """Layer decay reaches every layer in order, and the model's own names are exempt from weight decay."""
    backbone = build(name)
    model = nn.ModuleDict(dict(backbone=backbone, neck=nn.Conv2d(4, 4, 1)))
    options = dict(type="AdamW", lr=1.0, weight_decay=0.1)
    config = dict(optimizer=options, constructor="ARMOptimWrapperConstructor", paramwise_cfg=dict(layer_decay=0.5))
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert rates.keys() == dict(model.named_parameters()).keys()
    head = backbone.num_layers + 1
    assert len(set(rates.values())) == head + 1  # the embeddings, each layer, the rest
    for name, rate in rates.items():
        embeds = re.match(r"backbone\.model\.(patch_embed|pos_embed|\w+_token|stem)", name)
        block = re.match(r"backbone\.model\.blocks\.(\d+)\.", name)
        inside = name.startswith("backbone.model.")
        assert bool(embeds) == (rate == 0.5**head) and inside == (rate < 1), name
        if block:
            assert rate == 0.5 ** (head - 1 - int(block[1])), name
        exempt = re.search(r"(bias|pos_embed|_token|bias_table|norm\w*\.weight|bn\.weight|gamma\w*)$", name)
        assert not (exempt and decay[name]), name
        if name.endswith(("fc1.weight", "qkv.weight", "proj.weight", "neck.weight")):
            assert decay[name] == 0.1, name


def test_recomputed_blocks_give_the_same_gradients():
    gradients = []
    for with_cp in (False, True):
        backbone = build(DEIT[0], with_cp=with_cp)
        sum(x.square().sum() for x in backbone(torch.ones(1, 3, 40, 56))).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


# -------------------------------------------------------------------------------------------------- weights


def registered(checkpoint: str) -> TimmBackbone:
    """A backbone in OpenMMLab, initialised from a checkpoint."""
    name, arguments = DEIT
    config = dict(type="TimmBackbone", name=name, init_cfg=dict(type="Pretrained", checkpoint=checkpoint), **arguments)
    model = MODELS.build(config)
    model.init_weights()
    return model


def timm_state(classes: int, **other) -> dict:
    torch.manual_seed(1)
    return timm.create_model(DEIT[0], num_classes=classes, **DEIT[1] | other).state_dict()


@pytest.mark.parametrize(("classes", "suffix"), [(0, "pth"), (10, "safetensors"), (1000, "pth")])
def test_a_local_file_of_timm_loads(tmp_path, classes, suffix):
    state, path = timm_state(classes), tmp_path / f"weights.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(dict(model=state), path)
    model = registered(str(path)).model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.items())
    assert not {key for key in state.keys() - model.keys() if not key.startswith(("norm.", "head."))}


def test_a_position_table_of_another_size_is_resized(tmp_path):
    state = timm_state(10, img_size=96)
    torch.save(state, tmp_path / "small.pth")
    model = registered(str(tmp_path / "small.pth"))
    assert model.model.pos_embed.shape == (1, 197, 32)
    assert torch.equal(model.model.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])


def test_the_file_of_a_detector_loads(tmp_path):
    backbone = build(DEIT[0])
    nn.init.normal_(backbone.out_norms[1].weight)
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    torch.save(dict(state_dict=state | {"rpn_head.conv.weight": torch.zeros(1)}), tmp_path / "detector.pth")
    loaded = registered(str(tmp_path / "detector.pth")).state_dict()
    assert all(torch.equal(value, state[f"backbone.{key}"]) for key, value in loaded.items())


def test_a_name_on_the_hub_loads(tmp_path, monkeypatch):
    state = timm_state(10)
    save_file(state, tmp_path / "model.safetensors")
    files = {"me/deit": {"model.safetensors": (tmp_path / "model.safetensors").read_bytes(), "config.json": b"{}"}}
    with hub_server.serve(hub_server.Hub(files=files)) as hub:
        hub_server.use(monkeypatch, tmp_path / "cache", hub.url)
        model = registered("hf://me/deit")
    assert torch.equal(model.model.cls_token, state["cls_token"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("blocks.1.mlp.fc1.weight"), r"does not fit deit_base.*Missing key.*blocks\.1\.mlp\.fc1"),
        (lambda s: s.update(other=torch.zeros(1)), r"does not fit deit_base.*Unexpected key.*other"),
        (lambda s: s.update({"blocks.0.norm1.bias": torch.full((32,), torch.nan)}), r"blocks\.0\.norm1\.bias 32 of 32"),
        (lambda s: s.update(cls_token=torch.zeros(1, 1, 48)), r"does not fit deit_base.*cls_token"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, change, complaint):
    state = timm_state(10)
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=complaint) as error:
        registered(str(tmp_path / "other.pth"))
    assert "\n" not in str(error.value) and "other.pth" in str(error.value)


@pytest.mark.parametrize("paradigm", ["MAE", "MoCo v3"])
def test_files_of_the_paradigms_authors_load(tmp_path, paradigm):
    encoder = {name: tensor for name, tensor in timm_state(0).items() if not name.startswith("head.")}
    one = torch.ones(1)
    if paradigm == "MAE":
        saved = dict(
            model=encoder | {"mask_token": one, "decoder_embed.weight": one, "decoder_blocks.0.norm1.bias": one}
        )
    else:
        others = {
            f"module.{name}": one for name in ("base_encoder.head.0.weight", "momentum_encoder.x", "predictor.0.y")
        }
        saved = dict(state_dict={f"module.base_encoder.{name}": value for name, value in encoder.items()} | others)
    torch.save(saved, tmp_path / "theirs.pth")
    loaded = registered(str(tmp_path / "theirs.pth")).model.state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in loaded.items())


def test_weights_that_timm_cannot_download_are_one_line(tmp_path, monkeypatch):
    hub_server.use(monkeypatch, tmp_path, offline=True)
    with pytest.raises(CheckpointError, match="timm's weights of deit_base_patch16_224 cannot be had") as error:
        build(DEIT[0]).load("timm")
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------ classifiers


def test_classifier_is_timms_and_trains(tmp_path):
    torch.save(timm_state(10), tmp_path / "ten.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "ten.pth"))
    model = MODELS.build(dict(type="TimmClassifier", name=DEIT[0], num_classes=10, init_cfg=init_cfg, **DEIT[1]))
    model.init_weights()
    whole = timm.create_model(DEIT[0], num_classes=10, **DEIT[1]).eval()
    whole.load_state_dict(timm_state(10))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), whole(images))
        assert torch.equal(torch.stack(model(images, mode="predict")), whole(images))
    model.train()(images, torch.tensor([1, 2]), mode="loss")["loss"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "ours.pth")
    backbone = build(DEIT[0])
    backbone.load(str(tmp_path / "ours.pth"))  # a classifier becomes a backbone
    assert torch.equal(backbone.model.pos_embed, model.model.pos_embed)


def test_a_head_for_other_classes_starts_fresh_and_the_log_says_so(tmp_path):
    torch.save(timm_state(10), tmp_path / "ten.pth")
    model = TimmClassifier(DEIT[0], num_classes=7, **DEIT[1])
    before = model.model.head.weight.clone()
    report = model.load(tmp_path / "ten.pth")
    assert re.search(r"2 new \(head\.weight, head\.bias\)", report)
    assert torch.equal(model.model.head.weight, before)
    assert torch.equal(model.model.norm.weight, timm_state(10)["norm.weight"])


def test_a_drop_path_rate_of_zero_is_not_the_models_default():
    rates = [
        max(
            getattr(module, "drop_prob", 0)
            for module in TimmClassifier("swin_tiny_patch4_window7_224", **given).modules()
        )
        for given in (dict(), dict(drop_path_rate=0.0))
    ]
    assert rates == [pytest.approx(0.1), 0]


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (dict(name="resnet_base"), "'resnet_base' is not a model of timm"),
        (dict(name="mixer_s16_224"), "mixer_s16_224 takes no images of 128 x 160 pixels"),
        (dict(name="efficientformer_l1"), "efficientformer_l1 takes no images of 256 x 320 pixels"),
        (dict(name="vgg11", drop_path_rate=0.1), "vgg11 cannot be built.*drop_path_rate"),
        (dict(name=DEIT[0], out_indices=(3, 12)), r"out_indices=\(3, 12\): give numbers from 0 to 11"),
        (dict(name=DEIT[0], out_indices=(5, 3)), "in ascending order"),
        (dict(name=DEIT[0], num_classes=5), "a backbone has no classes"),
    ],
)
def test_a_model_without_maps_is_refused_in_one_line(arguments, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        TimmBackbone(**arguments)
    assert "\n" not in str(error.value)


def test_a_model_that_offers_no_intermediates_is_refused(monkeypatch):
    monkeypatch.delattr(timm.models.ResNet, "forward_intermediates")
    with pytest.raises(ValueError, match="resnet18 returns no feature maps"):
        TimmBackbone("resnet18")
