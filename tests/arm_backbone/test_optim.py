"""Parameter groups: weight decay by name, learning rate by depth."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from arm_backbone import ARM
from arm_backbone.openmmlab import ARMOptimWrapperConstructor


class Detector(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.backbone = ARM(arch, img_size=64, cls_token="middle")
        self.neck = nn.Sequential(nn.Conv2d(32, 8, 1), nn.GroupNorm(2, 8))


def wrapper(model, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            type="OptimWrapper",
            optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.05),
            constructor="ARMOptimWrapperConstructor",
            paramwise_cfg=paramwise,
        ),
    )


def test_layer_decay_reaches_every_parameter_with_its_depth(small_arch):
    model = Detector(small_arch)
    expected = {}
    for name, _ in model.named_parameters():
        if name.startswith(("backbone.patch_embed", "backbone.pos_embed", "backbone.cls_")):
            expected[name] = 0.5**5
        elif name.startswith("backbone.blocks."):
            expected[name] = 0.5 ** (4 - int(name.split(".")[2]))
        else:
            expected[name] = 1.0
    actual = {
        name: group["lr"]
        for group in wrapper(model, layer_decay=0.5).optimizer.param_groups
        for name in group["param_names"]
    }
    assert actual == expected
    assert len(set(actual.values())) == 6


def test_weight_decay_by_name(small_arch):
    groups = wrapper(Detector(small_arch)).optimizer.param_groups
    decayed = {n for g in groups if g["weight_decay"] for n in g["param_names"]}
    exempt = {n for g in groups if not g["weight_decay"] for n in g["param_names"]}
    block = "backbone.blocks.0."
    assert {
        block + n for n in ("mixer.conv_weight", "mixer.x_proj_weight", "mixer.dt_proj_weight", "mlp.w1.weight")
    } <= decayed
    assert {
        block + n for n in ("mixer.A_log", "mixer.D", "mixer.conv_bias", "mixer.dt_proj_bias", "norm1.weight")
    } <= exempt
    assert {
        "backbone.pos_embed",
        "backbone.cls_token",
        "backbone.out_norms.0.weight",
        "neck.1.weight",
        "neck.0.bias",
    } <= exempt
    assert "neck.0.weight" in decayed


def test_unknown_keys_and_models_without_arm_are_refused(small_arch):
    with pytest.raises(ValueError, match="unknown key 'layer_decay_rate'"):
        wrapper(Detector(small_arch), layer_decay_rate=0.7)
    with pytest.raises(ValueError, match="needs an encoder with layer_depth"):
        wrapper(nn.Linear(2, 2), layer_decay=0.7)
    with pytest.raises(ValueError, match="decay_exempt='all'"):
        wrapper(Detector(small_arch), decay_exempt="all")
    assert ARMOptimWrapperConstructor.KEYS == ("layer_decay", "decay_exempt")


def test_frozen_parameters_are_in_no_group(small_arch):
    model = Detector(small_arch)
    model.backbone.requires_grad_(False)
    names = [name for group in wrapper(model).optimizer.param_groups for name in group["param_names"]]
    assert names and all(n.startswith("neck") for n in names)


def test_a_step_moves_every_group(small_arch):
    model = Detector(small_arch)
    optim = wrapper(model, layer_decay=0.9)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    maps = model.backbone(torch.randn(2, 3, 64, 64))
    optim.update_params(sum((model.neck(m) * torch.randn(8, 1, 1)).sum() for m in maps))
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []
