"""Exactness against the public reference code: its outputs, gradients and conversions, file by file.

The files are in ../shared/golden, whose README describes them; tests/test_drift.py guards a clone that stands alone.
The worst relative deviation of each file is printed at the end of the run.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import Tensor

from arm_backbone.checkpoint.convert import convert
from arm_backbone.checkpoint.load import load_exact as load_model
from arm_backbone.checkpoint.load import load_trunk
from arm_backbone.checkpoint.official import from_official, to_official
from arm_backbone.checkpoint.official import parameter_names as names
from arm_backbone.classifier import ARMClassifier
from arm_backbone.mixer import MambaMixer
from arm_backbone.ops import selective_scan
from arm_backbone.ops.dispatch import unavailable
from arm_backbone.optim import warmup_cosine
from arm_backbone.pos_embed import resize_pos_embed, sincos_pos_embed
from arm_backbone.scan_order import cls_index, scan_orders
from arm_pretrain import ARMPretrainer
from arm_pretrain.targets import normalized_pixels as normalised_pixels
from arm_toolkit.engine.config import load_config
from arm_toolkit.engine.ema_hook import WeightEMAHook
from tests.helpers.deviations import DEVIATIONS
from tests.helpers.golden import PRECISIONS, Golden
from tests.helpers.paths import ROOT

BLOCK = "layers.0.mixer."


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
        for backend in ("reference", "torch", "cpu"):
            if unavailable(backend, torch.device("cpu"), file.dtype):
                continue
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


def _theirs(model: torch.nn.Module) -> dict[str, Tensor]:
    """A model's parameters and tables under the authors' names."""
    return to_official({name: tensor.detach() for name, tensor in model.state_dict().items()})[0]


@pytest.mark.parametrize("reference_init", [True, False])
def test_golden_initialisation_of_the_classifier(golden, reference_init):
    torch.manual_seed(0)
    _compare_initialisation(
        golden, "finetune_224_1000", _theirs(ARMClassifier("base", reference_init=reference_init)), reference_init
    )


def test_golden_initialisation_of_pretraining(golden):
    torch.manual_seed(0)
    _compare_initialisation(golden, "pretrain", _theirs(ARMPretrainer("base")), True)


def _compare_initialisation(golden, kind: str, ours: dict[str, Tensor], reference_init: bool) -> None:
    """Mean, deviation and extremes of every parameter agree as far as chance allows."""
    table = json.loads((golden / "init_stats.json").read_text())[kind]
    assert len(table) == {"pretrain": 73, "finetune_224_1000": 88}[kind]
    for name, expected in table.items():
        tensor = ours[name].double()
        if name == "pos_embed" and kind != "pretrain":  # the class token's entry is drawn with the others
            assert tensor.shape[1] == 197
        assert list(tensor.shape) == expected["shape"], name
        if not reference_init and ".dt_proj_" in name and name.endswith(".bias"):
            expected = table[name.split(".dt_proj_")[0] + ".dt_proj.bias"]  # every direction as the first
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


@pytest.mark.parametrize(
    ("stage", "path"), [("lr_pretrain", "pretrain/configs/arm_b.py"), ("lr_finetune", "cls_configs/arm_b_in1k.py")]
)
def test_golden_learning_rates(golden, stage, path):
    """Entry by entry: the function at any time, and the configured scheduler at the iterations that there are."""
    table = json.loads((golden / "recipe_tables.json").read_text())[stage]
    cfg = load_config(str(ROOT / path))
    schedule, peak = cfg.param_scheduler, cfg.optim_wrapper.optimizer.lr
    assert peak == pytest.approx(table["lr"], rel=1e-12)
    floor = schedule.get("floor", 0.0)
    assert floor * peak == pytest.approx(table["min_lr"], rel=1e-12)
    epochs = cfg.train_cfg.max_epochs
    assert (schedule.warmup, epochs) == (table["warmup_epochs"], table["epochs"])
    for epoch, whole, half in table["rows"]:
        factor = warmup_cosine(epoch, schedule.warmup, epochs, floor)
        assert peak * factor == pytest.approx(whole, rel=1e-9, abs=1e-18), epoch
        assert peak / 2 * factor == pytest.approx(half, rel=1e-9, abs=1e-18), epoch

    per_epoch = 4
    groups = [dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=peak * scale) for scale in (1, 0.5)]
    optimizer = torch.optim.AdamW(groups)
    scheduler = PARAM_SCHEDULERS.build(
        dict(schedule), default_args=dict(optimizer=optimizer, epoch_length=per_epoch, end=epochs)
    )
    expected = {
        epoch * per_epoch: rates for epoch, *rates in table["rows"] if epoch * per_epoch == int(epoch * per_epoch)
    }
    checked = 0
    for iteration in range(per_epoch * epochs):
        if iteration in expected:
            checked += 1
            rates = [group["lr"] for group in optimizer.param_groups]
            assert rates == pytest.approx(expected[iteration], rel=1e-9, abs=1e-18), iteration
        optimizer.step()
        scheduler.step()
    assert checked >= 5


def on_cpu(cfg: Config, model: torch.nn.Module) -> OptimWrapper:
    """The configured optimizer, without mixed precision."""
    keys = ("optimizer", "constructor", "paramwise_cfg")
    return build_optim_wrapper(model, dict(type="OptimWrapper", **{key: cfg.optim_wrapper[key] for key in keys}))


@pytest.mark.parametrize("layers", [12, 24])
def test_golden_layer_decay_and_weight_decay(golden, layers):
    table = json.loads((golden / "recipe_tables.json").read_text())[f"layer_decay_finetune_depth{layers}"]
    cfg = load_config(str(ROOT / ("cls_configs/arm_b_in1k.py" if layers == 12 else "cls_configs/arm_l_in1k.py")))
    assert cfg.optim_wrapper.paramwise_cfg.layer_decay == table["layer_decay"]
    assert list(cfg.optim_wrapper.optimizer.betas) == table["betas"]
    model = ARMClassifier(dict(embed_dims=32, num_layers=layers), num_classes=10)
    wrapper = on_cpu(cfg, model)
    ours = {
        name: (group["lr_scale"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for name in group["param_names"]
    }
    assert len(ours) == len(list(model.parameters()))
    theirs = {their_name: ours[our_name] for their_name, our_name, _ in names(layers, None)}
    theirs["pos_embed"] = ours["pos_embed"]
    assert ours["cls_pos_embed"] == ours["pos_embed"]  # one tensor in their files
    if layers == 12:
        expected = {
            name: (group["lr_scale"], group["weight_decay"]) for group in table["groups"] for name in group["params"]
        }
        assert theirs.keys() == expected.keys()
        for name in expected:
            assert theirs[name] == pytest.approx(expected[name], rel=1e-12), name
    else:
        for prefix, scale in table["lr_scale_by_prefix"].items():
            found = [value for name, (value, _) in theirs.items() if name == prefix or name.startswith(prefix + ".")]
            assert found and found == pytest.approx([scale] * len(found), rel=1e-12), prefix


def test_golden_weight_decay_of_pretraining(golden):
    table = json.loads((golden / "recipe_tables.json").read_text())["weight_decay_pretrain_tiny"]
    cfg = load_config(str(ROOT / "pretrain/configs/arm_b.py"))
    assert cfg.optim_wrapper.optimizer.weight_decay == table["weight_decay"]
    assert list(cfg.optim_wrapper.optimizer.betas) == table["betas"]
    model = ARMPretrainer(dict(embed_dims=64, num_layers=12), decoder_dim=128)
    wrapper = on_cpu(cfg, model)
    decay = {name: g["weight_decay"] > 0 for g in wrapper.optimizer.param_groups for name in g["param_names"]}
    theirs = {their_name: decay.get(our_name) for their_name, our_name, _ in names(12, 4)}
    assert {name for name, value in theirs.items() if value} == set(table["decay"])
    assert {name for name, value in theirs.items() if value is False} == set(table["no_decay"])
    assert {name for name, value in theirs.items() if value is None} | {"pos_embed"} == set(table["not_optimised"])


@pytest.mark.parametrize(("layers", "rate"), [(4, 0.2), (12, 0.1), (24, 0.3)])
def test_golden_drop_path(golden, layers, rate):
    expected = json.loads((golden / "recipe_tables.json").read_text())[f"drop_path_depth{layers}_rate{rate}"]
    model = ARMClassifier(dict(embed_dims=16, num_layers=layers), drop_path_rate=rate)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_golden_moving_average(golden):
    table = json.loads((golden / "recipe_tables.json").read_text())["ema"]
    hook = WeightEMAHook(decay=table["decay"])
    model = torch.nn.Linear(1, 1, bias=False)
    runner = SimpleNamespace(
        model=model, max_iters=9, iter=0, optim_wrapper=SimpleNamespace(should_update=lambda: runner.step)
    )
    hook.before_run(runner)
    torch.nn.init.constant_(model.weight, table["start"])  # weights are loaded after the hook was made
    hook.before_train(runner)
    for value, expected in table["after_each_update"]:
        torch.nn.init.constant_(model.weight, value)
        for runner.step in (False, True):  # of two accumulated iterations only the step counts
            hook.after_train_iter(runner, 0)
        assert hook.ema_model.module.weight.item() == pytest.approx(expected, rel=1e-6)
