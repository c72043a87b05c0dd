"""What timm's tests ask of its vision transformer, asked of timm's and of ours: docs/clients.md lists the results."""

import re

import pytest
import timm.data
import timm.optim
import timm.utils
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers import set_scriptable
from timm.models import group_modules, group_parameters, load_checkpoint
from timm.models._hub import save_for_hf
from torch import Tensor, nn

from arm_backbone.optim import is_decayed
from tests.helpers.paths import ROOT
from tests.helpers.scans import assert_close

DIM, BLOCKS, SIZE = 32, 4, 64
MODELS = {
    "timm's vit": ("vit_tiny_patch16_224", dict(embed_dim=DIM, depth=BLOCKS, num_heads=2)),
    "ARM": ("arm_tiny_patch16_224", dict(arch=dict(embed_dims=DIM, num_layers=BLOCKS))),
    "Vim": ("vim_tiny_patch16_224", dict(arch=dict(embed_dims=DIM, num_layers=BLOCKS))),
}


class Builder:
    """Builds small models of one architecture."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name, self.arguments = MODELS[kind]

    def __call__(self, **arguments) -> nn.Module:
        torch.manual_seed(0)
        given = dict(img_size=SIZE, num_classes=10) | self.arguments | arguments
        return timm.create_model(self.name, **given).eval()


def images(height: int = SIZE, width: int = SIZE, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(images()).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# ------------------------------------------------------------------------------------ the checks, by what they ask


def forward(build, folder):
    output = build()(images())
    assert output.shape == (2, 10) and output.isfinite().all()


def backward(build, folder):
    found = gradients(build().train())
    assert [name for name, grad in found.items() if grad is None or not grad.isfinite().all()] == []


def features_and_head(build, folder):
    model, x = build(), images()
    features = model.forward_features(x)
    assert features.shape == (2, 17, model.num_features)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)


def no_classes(build, folder):
    model = build(num_classes=0)
    assert model(images()).shape == (2, DIM) and isinstance(model.get_classifier(), nn.Identity)


def reset_classifier(build, folder):
    model, x = build(), images()
    model.reset_classifier(7)
    assert model(x).shape == (2, 7) and model.num_classes == 7 and model.get_classifier().out_features == 7
    model.reset_classifier(0)
    assert model(x).shape == (2, DIM)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))


def pools(build, folder):
    for pool in ("avg", "max", "avgmax", "map", "token"):
        assert build(global_pool=pool)(images()).shape == (2, 10)
    assert build(global_pool="", num_classes=0)(images()).shape == (2, 17, DIM)
    with pytest.raises(AssertionError):
        build(global_pool="median")


def features_only(build, folder):
    model = build(features_only=True)
    maps = model(images())
    assert len(maps) == 3 and model.feature_info.reduction() == [16] * 3
    assert [level.shape[1:] for level in maps] == [(c, 4, 4) for c in model.feature_info.channels()]
    assert len(build(features_only=True, out_indices=(0, 2))(images())) == 2


def intermediates(build, folder):
    model, x = build(), images()
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x)) and len(maps) == BLOCKS
    for output_fmt, shape in (("NCHW", (2, DIM, 4, 4)), ("NLC", (2, 16, DIM))):
        last = model.forward_intermediates(x, 2, output_fmt=output_fmt, intermediates_only=True)
        assert [level.shape for level in last] == [shape] * 2
    early = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True, norm=True)
    prefixed = model.forward_intermediates(x, [0], return_prefix_tokens=True, intermediates_only=True, norm=True)
    assert torch.equal(prefixed[0][0], early[0]) and prefixed[0][1].shape == (2, 1, DIM)
    found = model.forward_intermediates(x, output_dict=True)
    assert torch.equal(found["image_features"], final) and len(found["image_intermediates"]) == BLOCKS


def prune(build, folder):
    model, whole, x = build(), build(), images()
    assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
    assert len(model.blocks) == 2 and model.forward_features(x).shape == (2, 17, DIM)
    (found,) = model.forward_intermediates(x, [1], intermediates_only=True)
    assert torch.equal(found, whole.forward_intermediates(x, [1], intermediates_only=True)[0])


def checkpointing(build, folder):
    model = build().train()
    expected = gradients(model)
    model.set_grad_checkpointing()
    for name, grad in gradients(model).items():
        assert_close(grad, expected[name], 1e-5)
    model.set_grad_checkpointing(False)


def layers(build, folder):
    model = build()
    for coarse in (False, True):
        matcher = model.group_matcher(coarse=coarse)
        grouped = group_parameters(model, matcher)
        assert sorted(sum(grouped.values(), [])) == sorted(name for name, _ in model.named_parameters())
        assert len(group_modules(model, matcher)) == len(grouped) > 2


def weight_decay(build, folder):
    model = build()
    assert {"pos_embed", "cls_token"} <= set(model.no_weight_decay())
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", 1e-3, weight_decay=0.05, layer_decay=0.75)
    rates = {group["lr_scale"] for group in optimizer.param_groups}
    assert len(rates) >= BLOCKS + 1 and max(rates) == 1
    if build.kind == "ARM":
        names = {parameter: name for name, parameter in model.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                decayed = is_decayed(names[parameter], parameter, "reference")
                assert (group["weight_decay"] > 0) == decayed, names[parameter]


def channels(build, folder):
    for count in (1, 4):
        assert build(in_chans=count)(images(channels=count)).shape == (2, 10)


def image_size(build, folder):
    assert build(img_size=96)(images(96, 96)).isfinite().all()
    assert build(img_size=(64, 96))(images(64, 96)).isfinite().all()


def set_input_size(build, folder):
    model = build()
    model.set_input_size(img_size=(64, 96))
    assert model(images(64, 96)).isfinite().all()
    model.set_input_size(patch_size=8)
    assert model.forward_features(images(64, 96)).shape[1] == 8 * 12 + 1


def any_image_size(build, folder):
    assert build(dynamic_img_size=True)(images(48, 96)).isfinite().all()


def drop_rates(build, folder):
    x = images()
    for name in ("drop_rate", "drop_path_rate"):
        model = build(**{name: 0.5})
        assert torch.equal(model(x), build()(x))
        assert not torch.equal(model.train()(x), model(x))


def other_drop_rates(build, folder):
    for name in ("proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "patch_drop_rate"):
        assert build(**{name: 0.5})(images()).isfinite().all()


def default_cfg(build, folder):
    model = build()
    cfg, state = model.default_cfg, model.state_dict()
    assert f"{cfg['first_conv']}.weight" in state and f"{cfg['classifier']}.weight" in state
    data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data, is_training=False)
    assert data["input_size"] == (3, SIZE, SIZE) or cfg["input_size"] == (3, 224, 224)
    assert transform(Image.new("RGB", (80, 70))).shape == data["input_size"]


def device_and_type(build, folder):
    model = build(device="meta", dtype=torch.bfloat16)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    model.to_empty(device="cpu").init_weights()
    assert model(images().bfloat16()).isfinite().all()


def files(build, folder):
    model, x = build(), images()
    torch.save(dict(state_dict=model.state_dict(), epoch=3), folder / "weights.pth")
    other = build(num_classes=10, checkpoint_path=str(folder / "weights.pth"))
    assert torch.equal(other(x), model(x))
    save_file(model.state_dict(), folder / "weights.safetensors")
    other.reset_classifier(10)
    load_checkpoint(other, str(folder / "weights.safetensors"), strict=True)
    assert torch.equal(other(x), model(x))
    wrapped = {f"module._orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save(dict(model_ema=wrapped), folder / "wrapped.pth")  # DistributedDataParallel around torch.compile
    other.reset_classifier(10)
    load_checkpoint(other, str(folder / "wrapped.pth"))
    assert torch.equal(other(x), model(x))


def hub_folder(build, folder):
    model, x = build(), images()
    arguments = dict(img_size=SIZE) | build.arguments
    save_for_hf(model, folder / "hub", model_args=arguments, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{folder / 'hub'}", pretrained=True).eval()
    assert torch.equal(loaded(x), model(x)) and loaded.num_classes == 10


def utilities(build, folder):
    model, x = build(), images()
    average = timm.utils.ModelEmaV3(model, decay=0.5)
    average.update(model)
    assert_close(average(x), model(x), 1e-5)
    timm.utils.freeze(model, ["patch_embed", "blocks.0"])
    assert not any(parameter.requires_grad for parameter in model.blocks[0].parameters())
    timm.utils.unfreeze(model, ["patch_embed", "blocks.0"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert timm.utils.unwrap_model(nn.DataParallel(model)) is model


def compiled(build, folder):
    model, x = build(), images()
    assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x), 1e-5)


def exported(build, folder):
    model, x = build(), images()
    assert_close(torch.export.export(model, (x,)).module()(x), model(x), 1e-5)


def symbolic_tracing(build, folder):
    torch.fx.symbolic_trace(build())


def scripting(build, folder):
    with set_scriptable(True):
        torch.jit.script(build())


def parametrised_pooling(build, folder):
    build(global_pool="prr")


# name in docs/clients.md -> (check, what ARM raises instead; None if it passes)
CHECKS = {
    "`forward`": (forward, None),
    "gradients of every parameter": (backward, None),
    "`forward_features`, `forward_head`, `pre_logits`": (features_and_head, None),
    "`num_classes=0`, `get_classifier`": (no_classes, None),
    "`reset_classifier`": (reset_classifier, None),
    "`global_pool`: avg, max, avgmax, map, token, ''": (pools, None),
    "`features_only`, `feature_info`": (features_only, None),
    "`forward_intermediates`": (intermediates, None),
    "`prune_intermediate_layers`": (prune, None),
    "`set_grad_checkpointing`": (checkpointing, None),
    "`group_matcher`, layer decay": (layers, None),
    "`no_weight_decay`, `create_optimizer_v2`": (weight_decay, None),
    "`in_chans`": (channels, None),
    "`img_size`": (image_size, None),
    "`set_input_size`": (set_input_size, None),
    "`dynamic_img_size=True`": (any_image_size, None),
    "`drop_rate`, `drop_path_rate`": (drop_rates, None),
    "`default_cfg`, `create_transform`": (default_cfg, None),
    "`device`, `dtype`, `init_weights` after `to_empty`": (device_and_type, None),
    "`checkpoint_path`, `load_checkpoint`, safetensors": (files, None),
    "`save_for_hf`, `local-dir:`": (hub_folder, None),
    "`ModelEmaV3`, `freeze`": (utilities, None),
    "`torch.compile`": (compiled, None),
    "`torch.export`": (exported, None),
    "`torch.fx`": (symbolic_tracing, (NotImplementedError, "torch.fx cannot trace the scan")),
    "`torch.jit.script`, `scriptable=True`": (scripting, (NotImplementedError, "TorchScript cannot compile the scan")),
    "`global_pool`: prr": (parametrised_pooling, (AssertionError, "global_pool='prr' is unknown")),
    "`proj_drop_rate`, `attn_drop_rate`, `pos_drop_rate`, `patch_drop_rate`": (
        other_drop_rates,
        (TypeError, "unexpected keyword argument '(proj|attn|pos|patch)_drop_rate'"),
    ),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "kind", ["ARM", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("timm's vit", "Vim"))]
)
def test_row_53_contract_of_a_vision_transformer(kind, check, tmp_path):
    run, refusal = CHECKS[check]
    if kind in ("ARM", "Vim") and refusal:
        error, message = refusal
        with pytest.raises(error, match=message):
            run(Builder(kind), tmp_path)
    else:
        run(Builder(kind), tmp_path)


def test_row_53_the_document_lists_these_results():
    text = (ROOT / "docs/clients.md").read_text().partition("\n## PyTorch\n")[0]
    rows = dict(re.findall(r"^\| (.+?) \| (passes|refused).*\|$", text, flags=re.M))
    assert rows == {name: "refused" if refusal else "passes" for name, (_, refusal) in CHECKS.items()}


def test_any_image_size_cannot_be_switched_off():
    with pytest.raises(ValueError, match="dynamic_img_size=False: ARM takes images of any size"):
        Builder("ARM")(dynamic_img_size=False)
