"""Exactness of VMamba against its public code: outputs, gradients, names, counts, orders and initialisation.

The files are in ../shared/golden_encoders, whose README describes them. The worst relative deviation of each file is
printed at the end of the run.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arm_backbone.checkpoint.vmamba_official import from_official, parameter_names, to_official
from arm_backbone.ops import cross_scan
from arm_backbone.ss2d import SS2D, ss2d_orders
from arm_backbone.vmamba_classifier import VMambaClassifier

SIZES = {"VMamba-T s1l8": "tiny", "VMamba-S s2l15": "small", "VMamba-B s2l15": "base"}
EXTRA = {  # in the golden files, but without a name of ours
    "VMamba-T s2l5": dict(widths=(96, 192, 384, 768), depths=(2, 2, 5, 2), expand=2),
    "VMamba-S s1l20": dict(widths=(96, 192, 384, 768), depths=(2, 2, 20, 2), expand=1),
    "VMamba-B s1l20": dict(widths=(128, 256, 512, 1024), depths=(2, 2, 20, 2), expand=1),
}
BLOCK = "layers.0.blocks.0.op."
MIXER = "stages.0.blocks.0.mixer."


def chw(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["vmamba_ss2d_5x4", "vmamba_ss2d_3x6_width40_n4"])
def test_golden_mixers(load_encoder, name):
    file = load_encoder(name)
    arguments = json.loads(str(file.file["config_json"]))["constructor"]
    mixer = SS2D(arguments["d_model"], int(arguments["ssm_ratio"]), arguments["d_state"])
    ours, _ = from_official({BLOCK + key: tensor for key, tensor in file.under("state/").items()})
    mixer.load_state_dict({key.removeprefix(MIXER): tensor for key, tensor in ours.items()})
    mixer.to(file.dtype)
    height, width = arguments["grid"]
    orders = ss2d_orders(height, width)

    def in_scan_order(x: Tensor) -> Tensor:
        """(B, K, L, C) in token order -> (B, K, C, L) in the order of each scan."""
        return torch.stack([x[:, k, orders.tensor[k]].mT for k in range(4)], 1)

    seen = {}
    mixer.conv.register_forward_hook(lambda module, args, output: seen.update(conv=F.silu(output)))
    mixer.out_norm.register_forward_hook(lambda module, args, output: seen.update(norm=output, merged=args[0]))
    x = file["in/x"].requires_grad_()
    y = mixer(x.permute(0, 2, 3, 1), orders)
    (chw(y) * file["in/grad_out"]).sum().backward()
    file.check("out/y", chw(y))
    file.check("out/after_conv_act", seen["conv"])
    file.check("out/merged", seen["merged"].mT.unflatten(2, (height, width)))
    file.check("out/after_out_norm", seen["norm"].mT.unflatten(2, (height, width)))
    u = seen["conv"].flatten(2).mT
    delta, B, C = mixer.scan_inputs(u)
    for key, tensor in dict(in_=u.unsqueeze(1).expand(-1, 4, -1, -1), dt_before_bias=delta, B=B, C=C).items():
        file.check(f"out/scan_{key.strip('_')}", in_scan_order(tensor))
    A = -mixer.A_log.exp()
    each = []
    for k in range(4):
        one = slice(k, k + 1)
        tensors = u[:, None], delta[:, one], A[one], B[:, one], C[:, one], mixer.D[one], mixer.dt_proj_bias[one]
        each.append(cross_scan(*tensors, orders[one], reduce="sum"))
    file.check("out/scan_out", in_scan_order(torch.stack(each, 1)))
    file.check("grad/input", x.grad)
    grads = to_official({MIXER + key: parameter.grad for key, parameter in mixer.named_parameters()})[0]
    assert len(grads) == 10
    for key, grad in grads.items():
        file.check(f"grad/{key.removeprefix(BLOCK)}", grad)
    assert not file.unchecked()


@pytest.mark.parametrize("name", ["vmamba_tiny_64", "vmamba_tiny_72x56"])
def test_golden_classifiers(load_encoder, name):
    file = load_encoder(name)
    arguments = json.loads(str(file.file["config_json"]))["constructor"]
    arch = dict(widths=arguments["dims"], depths=arguments["depths"], expand=int(arguments["ssm_ratio"]))
    model = VMambaClassifier(arch, num_classes=arguments["num_classes"])
    state = file.under("state/")
    model.load_state_dict(from_official(state)[0])
    back = to_official(model.state_dict())[0]
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    model.to(file.dtype)

    seen = {}

    def note(key: str, module: torch.nn.Module, of_input: bool = False) -> None:
        module.register_forward_hook(lambda module, args, output: seen.update({key: args[0] if of_input else output}))

    note("patch_embed", model.stem)
    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage.blocks):
            note(f"stage{i}_block{j}", block)
            note(f"stage{i}_block{j}_after_ssm", block.norm2, of_input=True)
        if stage.downsample is not None:
            note(f"stage{i}_downsample", stage.downsample)
    features = model.forward_features(file["in/images"])
    seen["classifier_norm"] = features
    assert len(seen) == 15
    for key, x in seen.items():
        file.check(f"out/{key}", chw(x))
    file.check("out/pooled", model.forward_head(features, pre_logits=True))
    logits = model.forward_head(features)
    file.check("out/logits", logits)
    loss = F.cross_entropy(logits, file["in/labels"])
    file.check("out/loss", loss)
    loss.backward()
    grads = to_official({key: parameter.grad for key, parameter in model.named_parameters()})[0]
    checked = [key for key in grads if f"grad/{key}" in file.file.files]
    assert len(checked) == 15
    for key in checked:
        file.check(f"grad/{key}", grads[key])
    norms = json.loads(str(file.file["config_json"]))[
        "grad64_l2_norms" if file.dtype == torch.float64 else "grad_l2_norms"
    ]
    assert norms.keys() == grads.keys()
    for key, norm in norms.items():
        assert grads[key].norm().item() == pytest.approx(norm, rel=1e-9 if file.dtype == torch.float64 else 2e-5), key


def test_golden_scan_orders(golden_encoders):
    for grid, expected in json.loads((golden_encoders / "vmamba_scan_orders.json").read_text()).items():
        assert ss2d_orders(*map(int, grid.split("x"))).tensor.tolist() == expected, grid


def test_golden_names_and_parameter_counts(golden_encoders):
    counts = json.loads((golden_encoders / "vmamba_param_counts.json").read_text())
    keys = json.loads((golden_encoders / "vmamba_keys.json").read_text())
    assert set(counts) == set(SIZES) | set(EXTRA) and set(keys) <= set(counts)
    for name, expected in counts.items():
        with torch.device("meta"):
            model = VMambaClassifier(SIZES.get(name) or EXTRA[name])
        assert (model.widths, model.depths) == (tuple(expected["dims"]), tuple(expected["depths"]))
        assert sum(p.numel() for p in model.parameters()) == expected["parameters"], name
        assert sum(p.numel() for p in model.head.parameters()) == expected["head"], name
        theirs = to_official(model.state_dict())[0]
        assert len(theirs) == expected["state_dict_keys"], name
        if name in keys:
            assert {key: list(tensor.shape) for key, tensor in theirs.items()} == keys[name]["keys"], name
            assert set(dict(parameter_names(list(model.depths)))) == theirs.keys()


def test_golden_initialisation(golden_encoders):
    """Mean, deviation and extremes of every parameter agree as far as chance allows."""
    tables = json.loads((golden_encoders / "vmamba_init_stats.json").read_text())
    checked = 0
    for name, table in tables.items():
        torch.manual_seed(0)
        model = VMambaClassifier(SIZES.get(name) or EXTRA[name])
        ours = to_official({key: tensor.detach() for key, tensor in model.state_dict().items()})[0]
        for key, expected in table.items():
            tensor, spread = ours[key].double(), expected["std"]
            assert list(tensor.shape) == expected["shape"], key
            checked += 1
            if spread == 0:
                assert (tensor == expected["mean"]).all(), key
                continue
            chance = 6 * spread / tensor.numel() ** 0.5
            assert abs(tensor.mean().item() - expected["mean"]) < chance, key
            assert abs(tensor.std().item() - spread) < chance, key
            linear = key.endswith(("proj.weight", "fc1.weight", "fc2.weight", "head.weight"))
            if not linear:  # normal distributions have no edge
                span = expected["max"] - expected["min"]
                for edge in ("min", "max"):
                    distance = abs(getattr(tensor, edge)().item() - expected[edge])
                    assert distance < 30 * span / tensor.numel() + 1e-6, (key, edge)
    assert checked
