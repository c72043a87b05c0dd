"""Exactness against the public reference code: its outputs, gradients and conversions, file by file.

The files are in ../shared/golden, whose README describes them; tests/test_drift.py guards a clone that stands alone.
The worst relative deviation of each file is printed at the end of the run.
"""

import json

import numpy as np
import pytest
import torch
from conftest import DEVIATIONS
from torch import Tensor

from arm_backbone.classifier import ARMClassifier
from arm_backbone.convert import convert
from arm_backbone.load import load_model, load_trunk
from arm_backbone.mixer import MambaMixer
from arm_backbone.official import from_official, names, to_official
from arm_backbone.ops import selective_scan
from arm_backbone.pos_embed import resize_pos_embed, sincos_pos_embed
from arm_backbone.scan_order import cls_index, scan_orders
from arm_pretrain import ARMPretrainer
from arm_pretrain.targets import normalised_pixels

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
# of the largest reference value, and absolute: the golden README's suggestion
TOLERANCE = {"float64": (1e-9, 1e-14), "float32": (2e-5, 1e-8)}
BLOCK = "layers.0.mixer."


class Golden:
    """One file in one precision, and the deviations found from it.

    In float64 only what the reference ran in float64 is checked (keys out64/..., grad64.../...), and vice versa.
    """

    def __init__(self, path, precision: str, deviations: dict) -> None:
        self.file, self.precision = np.load(path), precision
        self.dtype = PRECISIONS[precision]
        self.worst = deviations.setdefault(path.stem, {})

    def __getitem__(self, key: str) -> Tensor:
        value = torch.tensor(self.file[key])
        return value.to(self.dtype) if value.is_floating_point() else value

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Float32 arrays by the rest of their names."""
        return {k.removeprefix(prefix): torch.tensor(self.file[k]) for k in self.file.files if k.startswith(prefix)}

    def check(self, key: str, result: Tensor, tolerance: tuple[float, float] | None = None) -> None:
        """`key` without the 64 of out64 or grad64."""
        if self.precision == "float64" and "/" in key and not key.startswith("c"):
            part, rest = key.split("/", 1)
            key = part.replace("out", "out64").replace("grad", "grad64") + "/" + rest
        if key not in self.file.files:
            return
        expected = torch.tensor(self.file[key]).double()
        assert result.shape == expected.shape, key
        relative, absolute = tolerance or TOLERANCE[self.precision]
        largest = expected.abs().max().item()
        deviation = (result.detach().double() - expected).abs().max().item()
        worst, count = self.worst.get(self.precision, (0.0, 0))
        self.worst[self.precision] = max(worst, deviation / (largest or 1)), count + 1
        assert deviation <= relative * largest + absolute, f"{key}: {deviation:.1e} away, largest value {largest:.1e}"


@pytest.fixture(params=PRECISIONS)
def load(request, golden):
    """Opens a golden file by name, once in each precision."""
    deviations = request.config.stash.setdefault(DEVIATIONS, {})
    return lambda name: Golden(golden / f"{name}.npz", request.param, deviations)


def test_golden_scans(load):
    file = load("selective_scan_cases")
    cases = json.loads(str(file.file["config_json"]))["cases"]
    assert len(cases) == 12
    for case, config in cases.items():
        arguments = [n for n in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias") if f"{case}/{n}" in file.file]
        tolerance = (1e-9, 1e-14) if file.precision == "float64" else (1e-5, 1e-7)
        if case == "c12":  # its reference softplus is the identity above 20
            tolerance = (max(tolerance[0], 1e-8), tolerance[1])
        for backend in ("reference", "torch"):
            inputs = {n: file[f"{case}/{n}"].requires_grad_() for n in arguments}
            out, state = selective_scan(
                **inputs, delta_softplus=config["delta_softplus"], return_last_state=True, backend=backend
            )
            grads = torch.autograd.grad((out * file[f"{case}/g_out"]).sum(), inputs.values())
            file.check(f"{case}/out", out, tolerance)
            file.check(f"{case}/last_state", state, tolerance)
            for name, grad in zip(arguments, grads, strict=True):
                file.check(f"{case}/grad_{name}", grad, tolerance)


@pytest.mark.parametrize("name", ["mixer_only_single_L17", "mixer_only_v3_L17", "mixer_only_v3_L26"])
def test_golden_mixers(load, name):
    file = load(name)
    theirs = {BLOCK + key: tensor for key, tensor in file.under("state/").items()}
    scans = 4 if BLOCK + "D_b" in theirs else 1
    start = "blocks.0.mixer."
    if scans == 1:  # as in a pretraining file
        theirs["ar_token"] = torch.zeros(1, 1, 32)
        start = "encoder." + start
    ours, _ = from_official(theirs)
    mixer = MambaMixer(32, scans)
    mixer.load_state_dict({k.removeprefix(start): v for k, v in ours.items() if k.startswith(start)})
    mixer.to(file.dtype)

    x = file["in/x"].requires_grad_()
    side = {17: 4, 26: 5}[x.shape[1]]
    y = mixer(x, scan_orders(side, side, scans, "middle"))
    (y * file["in/grad_out"]).sum().backward()
    file.check("out/y", y)
    file.check("grad/input", x.grad)
    grads = {start + name: p.grad for name, p in mixer.named_parameters()}
    for theirs, ours, direction in names(1, None if scans == 4 else 0):
        if ours in grads:
            grad = grads[ours] if direction is None else grads[ours][direction]
            grad = grad.unsqueeze(1) if ours.endswith("conv_weight") else grad
            file.check(f"grad/{theirs.removeprefix(BLOCK)}", grad)


def hidden_states(blocks: torch.nn.ModuleList) -> list[Tensor]:
    """A list that the outputs of the blocks will be appended to."""
    outputs: list[Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    return outputs


@pytest.mark.parametrize("size", [64, 80])
@pytest.mark.parametrize("pool", ["global_pool", "cls"])
def test_golden_finetuned_classifier(load, size, pool):
    file = load(f"finetune_tiny_{size}")
    arch = dict(embed_dims=64, num_layers=4)
    model = ARMClassifier(arch, size, num_classes=10, global_pool={"global_pool": "avg", "cls": "token"}[pool])
    accounting = load_trunk(model, file.under("state/"), "golden")
    assert not accounting.new and not accounting.dropped
    model.to(file.dtype)
    hidden = hidden_states(model.blocks)
    tokens = model.forward_features(file["in/images"])
    for i, output in enumerate(hidden):
        file.check(f"out/hidden_after_layer_{i + 1:02d}", output)
    file.check("out/norm_f", tokens)
    file.check("out/norm_f_every_4th_token", tokens[:, ::4])
    logits = model.forward_head(tokens)
    file.check(f"out/logits_{pool}", logits)
    loss = torch.nn.functional.cross_entropy(logits, file["in/labels"])
    file.check(f"out/loss_{pool}", loss)
    loss.backward()
    grads, _ = to_official({name: p.grad for name, p in model.named_parameters()})
    checked = 0
    for name, grad in grads.items():
        checked += f"grad_{pool}/{name}" in file.file.files
        file.check(f"grad_{pool}/{name}", grad)
    assert checked == 6


def test_golden_pretraining(load):
    file = load("pretrain_tiny")
    state = file.under("state/")
    model = ARMPretrainer(arch=dict(embed_dims=64, num_layers=12), decoder_dim=128)
    converted, accounting = convert(state, "pretrain")
    assert set(accounting.dropped) == {"mask"}
    load_model(model, converted, "golden")
    torch.testing.assert_close(model.encoder.pos_embed, sincos_pos_embed(12, 12, 64), atol=1e-6, rtol=0)
    model.to(file.dtype)
    images = file["in/images"]
    hidden = hidden_states(model.encoder.blocks)
    latent = model.decoder.latents(model.encode(images))
    for i, output in enumerate(hidden):
        file.check(f"out/hidden_after_layer_{i + 1:02d}", output)
    file.check("out/latent", latent)
    file.check("out/latent_every_8th_token", latent[:, ::8])
    target = normalised_pixels(model.target_patches(images))
    file.check("out/target", target, (1e-4, 1e-8) if file.precision == "float32" else None)
    predictions = model(images)
    file.check("out/pred", predictions)
    file.check("out/pred_every_32nd_channel", predictions[..., ::32])
    file.check("out/loss_vector", (predictions - target).square().mean((0, 2)))
    loss = model(images, mode="loss")["loss"]
    file.check("out/loss", loss)
    loss.backward()
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    for name, grad in to_official(grads)[0].items():
        file.check(f"grad/{name}", grad)


@pytest.mark.parametrize("size", [192, 224])
def test_golden_conversion(load, size):
    """What the authors' finetuning script makes of a pretraining checkpoint, bit by bit, and what it computes."""
    file, source = load(f"convert_tiny_{size}"), load("convert_tiny_ckpt")
    state, _ = convert(source.under("state/"), "official-finetune", grid=(size // 16, size // 16))
    expected = file.under("state/")
    assert state.keys() == expected.keys() and len(state) == 483
    for name, tensor in expected.items():
        if name == "pos_embed":
            torch.testing.assert_close(state[name], tensor, atol=1e-6, rtol=0)
        else:
            assert torch.equal(state[name], tensor), name

    arch = dict(embed_dims=64, num_layers=12)
    model = ARMClassifier(arch, size, num_classes=10)
    accounting = load_trunk(model, source.under("state/"), "golden")  # directly, without a file between
    assert set(accounting.new) == {"cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    whole = to_official(model.state_dict())[0] | file.under("set_by_fixture/")
    # the table in their bits, so that float64 can be compared
    load_trunk(model, whole | {"pos_embed": expected["pos_embed"]}, "golden")
    model.to(file.dtype)
    hidden = hidden_states(model.blocks)
    tokens = model.forward_features(file["in/images"])
    for i in (4, 8, 12):
        file.check(f"out/hidden_after_layer_{i:02d}", hidden[i - 1])
    file.check("out/norm_f", tokens)
    file.check("out/norm_f_every_4th_token", tokens[:, ::4])
    for name, pool in (("global_pool", "avg"), ("cls", "token")):
        model.global_pool = pool
        file.check(f"out/logits_{name}", model.forward_head(tokens))


@pytest.mark.parametrize("size", [128, 384])
def test_golden_position_tables(golden, size):
    table = torch.tensor(np.load(golden / "convert_tiny_ckpt.npz")["state/pos_embed"]).unflatten(1, (12, 12))
    expected = torch.tensor(np.load(golden / "convert_tiny_224.npz")[f"extra/pos_embed_{size}"])
    grid = size // 16
    cls = cls_index(grid**2, "middle")
    assert (expected[:, cls] == 0).all()
    patches = torch.cat([expected[:, :cls], expected[:, cls + 1 :]], 1).unflatten(1, (grid, grid))
    torch.testing.assert_close(resize_pos_embed(table, grid, grid), patches, atol=1e-6, rtol=0)


def test_golden_round_trips(golden):
    """The authors' files through ours and back, bit by bit."""
    for name, ours, theirs in (
        ("pretrain_tiny", "pretrain", "official-pretrain"),
        ("finetune_tiny_80", "classifier", "official-finetune"),
    ):
        file = np.load(golden / f"{name}.npz")
        state = {k.removeprefix("state/"): torch.tensor(file[k]) for k in file.files if k.startswith("state/")}
        back = convert(convert(state, ours)[0], theirs)[0]
        assert back.keys() == state.keys()
        assert all(torch.equal(back[k], state[k]) for k in state), name


def test_golden_token_orders(golden):
    tables = json.loads((golden / "token_orders.json").read_text())["finetune"]
    for name, entry in tables.items():
        side = int(name.split("_")[1].split("x")[0])
        expected = list(entry["scan_order_as_sequence_indices"].values())
        assert scan_orders(side, side, 4, "middle").tolist() == expected, name


@pytest.mark.parametrize("arch", ["base", "large", "huge"])
def test_golden_parameter_counts(golden, arch):
    counts = json.loads((golden / "param_counts.json").read_text())
    with torch.device("meta"):
        classifier, pretrainer = ARMClassifier(arch), ARMPretrainer(arch)

    def parameters(module, *beginnings):
        return sum(p.numel() for n, p in module.named_parameters() if not beginnings or n.startswith(beginnings))

    expected = counts["finetune_224_1000_classes"][f"arm_{arch}_pz16"]
    assert parameters(classifier) == expected["all_params"]
    assert parameters(classifier.head) == expected["head_params"]
    their_state, _ = to_official(classifier.state_dict())
    assert len(their_state) == expected["n_state_dict_keys"]
    for name, shape in expected["one_layer_shapes"].items():
        assert list(their_state[f"layers.0.{name}"].shape) == shape, name
    expected = counts["pretrain_192"][f"arm_{arch}_pz16"]
    trainable = sum(p.numel() for p in pretrainer.parameters() if p.requires_grad)
    assert trainable == expected["trainable_params"]
    decoder = parameters(pretrainer, "decoder.", "mask_token")
    skip_norms = parameters(pretrainer.decoder.skip_norms)  # the authors count them with the encoder
    assert decoder - skip_norms == expected["decoder_params"]
    assert trainable - decoder + skip_norms == expected["encoder_params"]
    tables = parameters(pretrainer, "encoder.pos_embed") + pretrainer.decoder_pos_embed.numel()
    assert tables == expected["frozen_pos_tables"]
