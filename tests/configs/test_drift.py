"""A few recorded float64 numbers that reveal changed results in a clone without ../shared/golden.

This file wrote them (`python tests/configs/test_drift.py`) at a commit where tests/arm_backbone/test_golden*.py passed.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import timm
import torch

from arm_backbone import ARM
from arm_backbone.aim import prefix_mask
from arm_backbone.checkpoint.convert import convert
from arm_backbone.classifier import ARMClassifier
from arm_backbone.pyramid import ARMSimpleFPN
from arm_backbone.timm_backbone import TimmBackbone
from arm_backbone.vim import Vim, VimClassifier
from arm_backbone.vmamba import VMamba
from arm_backbone.vmamba_classifier import VMambaClassifier
from arm_pretrain import ARMPretrainer, MAEPretrainer, MoCoPretrainer
from tests.helpers.small_models import VMAMBA_ARCH

FILE = Path(__file__).with_name("drift.json")
ARCH = dict(embed_dims=32, num_layers=4)


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """Set random weights, drawn by numpy and seeded by name: the same on every machine and version of torch."""
    state = {}
    for name, tensor in model.state_dict().items():
        draws = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
        if name.endswith("A_log"):
            base = tensor.double().numpy()
        else:
            ones = ("norm" in name and name.endswith("weight")) or name.endswith((".D", "running_var"))
            base = np.ones(1) if ones else np.zeros(1)
        state[name] = torch.tensor(base + 0.1 * draws)
    model.double().load_state_dict(state)
    return model.eval()


def images(*shape: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(0).standard_normal(shape))


def numbers() -> dict[str, list[float]]:
    """Outputs, losses and gradient norms of the models, by name."""
    result = {}
    for cls_token, pool, size in (
        ("middle", "avg", 80),
        ("middle", "token", 64),
        ("tail", "token", 48),
        (None, "avg", 48),
    ):
        model = filled(ARMClassifier(ARCH, size, cls_token=cls_token, global_pool=pool, num_classes=5))
        logits = model(images(2, 3, size, size))
        logits.square().sum().backward()
        name = f"classifier, class token {cls_token}, pool {pool}, {size} pixels"
        result[name] = logits.flatten().tolist()
        result[f"{name}, gradients"] = [p.grad.norm().item() for p in model.parameters()]
    maps = filled(ARM(ARCH, img_size=64))(images(1, 3, 50, 90))  # rectangular, padded
    result["backbone"] = [value for level in maps for value in (level.mean().item(), level.std().item())]
    model = filled(ARMPretrainer(ARCH, img_size=96, cluster_side=2, decoder_dim=64))
    loss = model(images(2, 3, 96, 96), mode="loss")["loss"]
    loss.backward()
    result["pretraining"] = [loss.item(), *model(images(2, 3, 96, 96))[0, ::8, 5].tolist()]
    result["pretraining, gradients"] = [p.grad.norm().item() for p in model.parameters() if p.requires_grad]
    model = filled(ARMPretrainer(ARCH, decoder_dim=64))
    theirs, _ = convert(model.state_dict(), "official-finetune", grid=(14, 14))
    result["conversion"] = [theirs[name].double().square().mean().sqrt().item() for name in sorted(theirs)]
    return result | vim_numbers() | vmamba_numbers() | timm_numbers() | paradigm_numbers()


def vim_numbers() -> dict[str, list[float]]:
    """Those of Vim: a classifier with overlapping patches, a backbone, and one causal scan."""
    result = {}
    model = filled(VimClassifier(ARCH, 48, patch_stride=8, num_classes=5))
    logits = model(images(2, 3, 48, 48))
    logits.square().sum().backward()
    result["Vim classifier"] = logits.flatten().tolist()
    result["Vim classifier, gradients"] = [p.grad.norm().item() for p in model.parameters()]
    maps = filled(Vim(ARCH, img_size=64))(images(1, 3, 50, 90))
    result["Vim backbone"] = [value for level in maps for value in (level.mean().item(), level.std().item())]
    model = filled(ARMPretrainer(ARCH, img_size=96, cluster_side=2, decoder_dim=64, encoder="Vim"))
    result["Vim pretraining"] = [model(images(2, 3, 96, 96), mode="loss")["loss"].item()]
    return result


def vmamba_numbers() -> dict[str, list[float]]:
    """Those of VMamba: a classifier and a backbone, on rectangular images."""
    result = {}
    model = filled(VMambaClassifier(VMAMBA_ARCH, num_classes=5))
    logits = model(images(2, 3, 50, 90))
    logits.square().sum().backward()
    result["VMamba classifier"] = logits.flatten().tolist()
    result["VMamba classifier, gradients"] = [p.grad.norm().item() for p in model.parameters()]
    maps = filled(VMamba(VMAMBA_ARCH))(images(1, 3, 50, 90))
    result["VMamba backbone"] = [value for level in maps for value in (level.mean().item(), level.std().item())]
    return result


def timm_numbers() -> dict[str, list[float]]:
    """Those of AIM, both ways and with prefixes, and of a timm model as a backbone with the simple pyramid."""
    result = {}
    small = dict(embed_dim=32, depth=4, num_heads=2)
    for causal, mask in ((False, None), (True, prefix_mask(torch.tensor([1, 4]), 6))):
        model = filled(timm.create_model("aim_600m_patch14_224", num_classes=5, causal=causal, **small))
        logits = model(images(2, 3, 28, 42), mask)
        logits.square().sum().backward()
        name = f"AIM, causal {causal}"
        result[name] = logits.flatten().tolist()
        result[f"{name}, gradients"] = [p.grad.norm().item() for p in model.parameters() if p.requires_grad]
    maps = filled(TimmBackbone("deit_base_patch16_224", out_indices=(3,), **small))(images(1, 3, 50, 90))
    levels = filled(ARMSimpleFPN(32, 16))(maps)
    result["DeiT and simple pyramid"] = [value for x in levels for value in (x.mean().item(), x.std().item())]
    return result


def paradigm_numbers() -> dict[str, list[float]]:
    """Those of MAE, with one scan and with several, and of a step of MoCo v3: losses and gradient norms."""
    result = {}
    noise = torch.tensor(np.random.default_rng(1).random((2, 24)))

    def norms(model: torch.nn.Module, loss: torch.Tensor) -> list[float]:
        loss.backward()
        return [loss.item(), *(p.grad.norm().item() for p in model.parameters() if p.grad is not None)]

    forms = {"one scan": {}, "four scans": dict(scans=4, cls_token="middle"), "Vim": dict(encoder="Vim")}
    for name, form in forms.items():
        model = filled(MAEPretrainer(ARCH, (64, 96), decoder_dim=32, decoder_depth=2, decoder_heads=4, **form))
        predictions, mask = model.predict_patches(images(2, 3, 64, 96), noise)
        result[f"MAE, {name}"] = norms(model, model.loss(images(2, 3, 64, 96), predictions, mask))
    model = filled(MoCoPretrainer(ARCH, (32, 48), hidden_dim=32, out_dim=16)).train()
    result["MoCo"] = norms(model, model(images(4, 2, 3, 32, 48), mode="loss")["loss"])
    return result


def test_numbers_have_not_drifted():
    expected = json.loads(FILE.read_text())
    actual = numbers()
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        largest = max(map(abs, values))
        np.testing.assert_allclose(actual[name], values, rtol=1e-8, atol=1e-9 * largest, err_msg=name)


if __name__ == "__main__":
    FILE.write_text(json.dumps(numbers(), indent=1) + "\n")
