"""Exactness of Vim against its public code, file by file (../shared/golden_encoders/vim_*)."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arm_backbone.checkpoint.convert import PER_DIRECTION, convert
from arm_backbone.checkpoint.load import load_trunk
from arm_backbone.checkpoint.official import parameter_names, to_official
from arm_backbone.mixer import MambaMixer
from arm_backbone.ops import mamba_inner
from arm_backbone.scan_order import scan_orders
from arm_backbone.vim import VimClassifier

BLOCK = "layers.0.mixer."
SIZES = {"tiny": "vim_tiny (Vim-Ti)", "small": "vim_small (Vim-S)", "base": "vim_base (Vim-B)"}


def theirs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's tensors under the names of Vim's authors."""
    return to_official({name: tensor.detach() for name, tensor in tensors.items()})[0]


@pytest.mark.parametrize("name", ["vim_mixer_L17", "vim_mixer_L26_width40", "vim_mixer_L9_expand1_n8"])
def test_mixers(load_encoder, name):
    file = load_encoder(name)
    config = json.loads(str(file.file["config_json"]))["constructor"]
    mixer = MambaMixer(config["d_model"], scans=2, d_state=config["d_state"], expand=config["expand"])
    names = [entry for entry in parameter_names(1, None, "Vim") if entry[0].startswith(BLOCK)]
    state = file.under("state/")
    assert state.keys() == {their_name.removeprefix(BLOCK) for their_name, _, _ in names}
    with torch.no_grad():
        for their_name, ours, direction in names:
            place = mixer.get_parameter(ours.removeprefix("blocks.0.mixer."))
            place = place if direction is None else place[direction]
            place.copy_(state[their_name.removeprefix(BLOCK)].view_as(place))
    mixer.to(file.dtype)

    x = file["in/x"].requires_grad_()
    orders = scan_orders(1, x.shape[1], 2)
    y = mixer(x, orders)
    (y * file["in/grad_out"]).sum().backward()
    file.check("out/y", y)
    file.check("grad/input", x.grad)
    for their_name, ours, direction in names:
        grad = mixer.get_parameter(ours.removeprefix("blocks.0.mixer.")).grad
        grad = grad if direction is None else grad[direction]
        key = f"grad/{their_name.removeprefix(BLOCK)}"
        file.check(key, grad.view(file.file[key].shape))
    u, z = xz = mixer.in_proj(x).transpose(1, 2).chunk(2, dim=1)
    file.check("out/xz", torch.cat(xz, 1))
    for k, key in enumerate(("scan_out", "scan_b_out_in_scan_order")):
        weights = {name: getattr(mixer, name)[k : k + 1] for name in PER_DIRECTION}
        weights["delta_bias"] = weights.pop("dt_proj_bias")
        out = mamba_inner(u.mT, **weights, orders=orders[k : k + 1]).mT * F.silu(z)
        file.check(f"out/{key}", out[:, :, orders[k]])
    assert not file.unchecked()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vim_tiny_64", dict(img_size=64, num_classes=10)),
        ("vim_tiny_80", dict(img_size=80, num_classes=10)),
        ("vim_tiny_48_stride8", dict(img_size=48, patch_stride=8, num_classes=7)),
    ],
)
def test_classifiers(load_encoder, name, arguments):
    file = load_encoder(name)
    depth = json.loads(str(file.file["config_json"]))["constructor"]["depth"]
    model = VimClassifier(dict(embed_dims=64, num_layers=depth), **arguments)
    accounting = load_trunk(model, file.under("state/"), name)
    assert not accounting.new and not accounting.dropped
    model.to(file.dtype).eval()
    mixers, hidden = [], []
    for block in model.blocks:
        block.mixer.register_forward_hook(lambda module, args, output: mixers.append(output))
        block.register_forward_hook(lambda module, args, output: hidden.append(output))

    file.check("out/tokens", model.embed(file["in/images"])[0])
    tokens = model.forward_features(file["in/images"])
    for i, (mixed, output) in enumerate(zip(mixers, hidden, strict=True), 1):
        file.check(f"out/mixer_out_{i:02d}", mixed)
        file.check(f"out/hidden_after_layer_{i:02d}", output)
    file.check("out/hidden_after_last_layer", hidden[-1])
    file.check("out/norm_f", tokens)
    file.check("out/norm_f_every_4th_token", tokens[:, ::4])
    file.check("out/features", model.forward_head(tokens, pre_logits=True))
    logits = model.forward_head(tokens)
    file.check("out/logits", logits)
    loss = F.cross_entropy(logits, file["in/labels"])
    file.check("out/loss", loss)
    loss.backward()
    grads = theirs({name: parameter.grad for name, parameter in model.named_parameters()})
    assert grads.keys() == file.under("state/").keys()
    for key, grad in grads.items():
        file.check(f"grad/{key}", grad)
    assert file.unchecked() <= {"grad64/patch_embed.proj.weight"}
    norms = json.loads(str(file.file["config_json"]))[
        "grad64_l2_norms" if file.precision == "float64" else "grad_l2_norms"
    ]
    assert norms.keys() == grads.keys()
    for key, norm in norms.items():  # of every parameter, also those without an array
        assert grads[key].norm().item() == pytest.approx(norm, rel=1e-9 if file.precision == "float64" else 2e-5), key


def test_round_trips(golden_encoders):
    """Their files through ours and back, bit by bit."""
    for name in ("vim_tiny_64", "vim_tiny_80", "vim_tiny_48_stride8"):
        file = np.load(golden_encoders / f"{name}.npz")
        state = {k.removeprefix("state/"): torch.tensor(file[k]) for k in file.files if k.startswith("state/")}
        back = convert(convert(state, "classifier")[0], "official-finetune")[0]
        assert back.keys() == state.keys()
        assert all(torch.equal(back[k], state[k]) for k in state), name


@pytest.mark.parametrize("arch", SIZES)
def test_key_lists(golden_encoders, arch):
    expected = json.loads((golden_encoders / "vim_keys.json").read_text())[SIZES[arch]]["keys"]
    with torch.device("meta"):
        state = theirs(VimClassifier(arch).state_dict())
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected


def test_parameter_counts(golden_encoders):
    counts = json.loads((golden_encoders / "vim_param_counts.json").read_text())
    cases = {SIZES[arch]: dict(arch=arch) for arch in SIZES} | {
        "Vim-Ti stride 8": dict(arch="tiny", patch_stride=8),
        "Vim-S stride 8": dict(arch="small", patch_stride=8),
        "Vim-L 1024x48 (arguments of Vim-B except embed_dim, depth)": dict(arch="large"),
        "Vim-H 1536x48 (arguments of Vim-B except embed_dim, depth)": dict(arch="huge"),
    }
    for name, arguments in cases.items():
        with torch.device("meta"):
            model = VimClassifier(**arguments)
        expected = counts[name]
        assert sum(p.numel() for p in model.parameters()) == expected["parameters"], name
        if "per_block" in expected:
            assert sum(p.numel() for p in model.blocks[0].parameters()) == expected["per_block"], name


@pytest.mark.parametrize("arch", ["tiny", "base"])
def test_initialisation(golden_encoders, arch):
    """Mean, deviation and extremes of every parameter agree as far as chance allows."""
    table = json.loads((golden_encoders / "vim_init_stats.json").read_text())[SIZES[arch]]
    torch.manual_seed(0)
    ours = theirs(VimClassifier(arch).state_dict())
    assert len(table) >= 30
    for name, expected in table.items():
        tensor = ours[name].double()
        assert list(tensor.shape) == expected["shape"], name
        count, spread = tensor.numel(), expected["std"]
        if spread == 0:
            assert (tensor == expected["mean"]).all(), name
            continue
        chance = 6 * spread / count**0.5
        assert abs(tensor.mean().item() - expected["mean"]) < chance, name
        assert abs(tensor.std().item() - spread) < chance, name
        if not name.endswith(("token", "pos_embed", "head.weight")):  # normal distributions have no edge
            for edge in ("min", "max"):
                span = expected["max"] - expected["min"]
                assert abs(getattr(tensor, edge)().item() - expected[edge]) < 30 * span / count + 1e-6, (name, edge)
