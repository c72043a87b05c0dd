"""Checkpoints of Vim: recognised by their keys, converted between all kinds, never taken for ARM's."""

import argparse

import pytest
import torch

from arm_backbone import ARM, ARMClassifier, Vim, VimClassifier
from arm_backbone.checkpoint.convert import TARGETS, Weights, arch_of, convert, detect_kind
from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_exact, load_trunk
from arm_backbone.checkpoint.official import to_official
from arm_pretrain import ARMPretrainer
from tests.helpers.tools import invoke

ARCH = dict(embed_dims=32, num_layers=4)


def state_of(model: torch.nn.Module) -> dict:
    """The state of a model, every tensor moved away from its initial value (equal scans would hide a mix-up)."""
    torch.manual_seed(1)
    return {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


@pytest.fixture
def states() -> dict[str, dict]:
    """One checkpoint of each kind, for images of 192 pixels."""
    backbone = state_of(Vim(ARCH, img_size=192))
    classifier = state_of(VimClassifier(ARCH, img_size=192, num_classes=5))
    return {
        "pretrain": state_of(ARMPretrainer(ARCH, encoder="Vim", decoder_dim=64)),
        "backbone": backbone,
        "classifier": classifier,
        "dense": {f"backbone.{k}": v for k, v in backbone.items()} | {"rpn_head.conv.weight": torch.ones(1)},
        "official-finetune": to_official(classifier)[0],
    }


KINDS = ("pretrain", "backbone", "classifier", "dense", "official-finetune")


@pytest.mark.parametrize("source", KINDS)
def test_every_kind_into_every_other(states, source):
    state = states[source]
    assert detect_kind(state) == source and Weights(state).encoder == "Vim"
    middle = None if source == "pretrain" else "middle"
    scans = 1 if source == "pretrain" else 2
    expected = dict(arch=ARCH, img_size=(192, 192), patch_size=16, patch_stride=16, in_chans=3)
    assert arch_of(state) == expected | dict(scans=scans, cls_token=middle)
    for target in TARGETS:
        if "pretrain" in target and source != "pretrain":
            with pytest.raises(CheckpointError, match="has no pretraining decoder"):
                convert(state, target)
            continue
        if target == "official-pretrain":
            with pytest.raises(CheckpointError, match="the authors of Vim have no format for pretraining"):
                convert(state, target)
            continue
        result, accounting = convert(state, target)
        assert set(accounting.used) == set(result)
        decoder = {key for key in state if not key.startswith("encoder.")} if source == "pretrain" else set()
        assert (decoder <= set(accounting.dropped)) == (target != "pretrain" or not decoder)
        again, _ = convert(result, target)
        assert again.keys() == result.keys() and all(torch.equal(again[k], result[k]) for k in result)
        if target == "backbone":
            load_trunk(Vim(ARCH, img_size=192, cls_token=middle), result, "result")
        elif target == "pretrain":
            load_exact(ARMPretrainer(ARCH, encoder="Vim", decoder_dim=64), result, "result")
        else:
            load_trunk(VimClassifier(ARCH, img_size=192, num_classes=5), result, "result")


def test_one_scan_becomes_two(states):
    state, accounting = convert(states["pretrain"], "backbone")
    for name, tensor in state.items():
        assert torch.equal(tensor, states["pretrain"][f"encoder.{name}"].expand_as(tensor)), name
    assert sum(how == "one scan copied to 2" for how in accounting.used.values()) == 4 * 7


def test_a_checkpoint_of_the_other_encoder(states):
    """One line that names both; nothing is loaded."""
    arm = state_of(ARMClassifier(ARCH, img_size=192, num_classes=5))
    for model, state, theirs, own in (
        (ARM(ARCH, img_size=192, cls_token="middle"), states["official-finetune"], "Vim", "ARM"),
        (ARMClassifier(ARCH, img_size=192), states["pretrain"], "Vim", "ARM"),
        (Vim(ARCH, img_size=192), arm, "ARM", "Vim"),
        (VimClassifier(ARCH, img_size=192), to_official(arm)[0], "ARM", "Vim"),
    ):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(CheckpointError) as error:
            load_trunk(model, state, "x.pth")
        message = str(error.value)
        assert message.startswith(f"x.pth does not fit the model: it holds {theirs} (") and "\n" not in message
        assert f"but the model is {own}; give a checkpoint of {own}, or build {theirs}" in message
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"layers.0.mixer.surprise": torch.ones(1)}), "unknown tensors: layers.0.mixer.surprise"),
        (lambda s: s.pop("layers.1.mixer.D_b"), "blocks.1.mixer.D exists for 1 of 2 directions"),
        (lambda s: s.pop("layers.2.norm.weight"), "missing .*blocks.2.norm.weight"),
        (lambda s: s.update(pos_embed=torch.ones(1, 12, 32)), "11 patches, which is not a square"),
        (lambda s: s.update({"layers.3.norm1.weight": torch.ones(32)}), "unknown tensors: layers.3.norm1.weight"),
    ],
)
def test_damaged_files_of_the_authors(states, change, message):
    state = dict(states["official-finetune"])
    change(state)
    with pytest.raises(CheckpointError, match=message):
        convert(state, "classifier")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["tiny", "small", "base"])
def test_full_size_files_of_the_authors(tmp_path, arch):
    """As their training writes them: weights and moving average under their names, optimizer, scheduler and `args`."""
    torch.manual_seed(0)
    model = VimClassifier(arch)
    weights = {name: torch.randn_like(tensor) for name, tensor in to_official(model.state_dict())[0].items()}
    average = {} if arch == "base" else {name: tensor * 0.5 for name, tensor in weights.items()}
    moment = torch.zeros(())  # of full size without its memory
    moments = {
        i: dict(step=torch.ones(()), exp_avg=moment.expand(w.shape), exp_avg_sq=moment.expand(w.shape))
        for i, w in enumerate(weights.values())
    }
    theirs = tmp_path / "checkpoint.pth"
    torch.save(
        dict(
            model=weights,
            model_ema=average,
            optimizer=dict(state=moments, param_groups=[dict(lr=1e-3, params=list(moments))]),
            lr_scheduler=dict(),
            scaler=dict(),
            epoch=299,
            args=argparse.Namespace(model="vim", batch_size=64, output_dir="out"),
        ),
        theirs,
    )
    for extra, expected in (([], weights), *([(["--ema"], average)] if average else [])):
        ours, back, dense = (tmp_path / name for name in ("ours.pth", "back.pth", "dense.pth"))
        done = invoke("convert_checkpoint.py", theirs, ours, "--to", "classifier", *extra)
        assert done.returncode == 0 and f"(official-finetune{', EMA' * bool(extra)}, 415 tensors)" in done.stdout
        assert invoke("convert_checkpoint.py", ours, back, "--to", "official-finetune").returncode == 0
        state = read_checkpoint(back)["model"]
        assert state.keys() == expected.keys() and len(state) == 415
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
        assert invoke("convert_checkpoint.py", theirs, dense, "--to", "backbone", *extra).returncode == 0
        backbone = Vim(arch)
        accounting = load_trunk(backbone, model_state(read_checkpoint(dense)), "dense.pth")
        assert set(accounting.new) == {name for name in backbone.state_dict() if name.startswith("out_norms.")}
        load_exact(model, model_state(read_checkpoint(ours)), "ours.pth")
        assert torch.equal(backbone.blocks[-1].mixer.D, model.blocks[-1].mixer.D)
        assert torch.equal(to_official(model.state_dict())[0]["pos_embed"], expected["pos_embed"])
