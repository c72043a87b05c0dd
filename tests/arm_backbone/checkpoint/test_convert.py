"""Every kind of checkpoint converts to every other kind that is possible, and every tensor is accounted for."""

import argparse
import os
import re
import warnings

import pytest
import torch
import torch.nn.functional as F

from arm_backbone import ARM, ARMClassifier
from arm_backbone.checkpoint.convert import TARGETS, arch_of, convert, detect_kind
from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint, write_checkpoint
from arm_backbone.checkpoint.load import load_exact, load_trunk
from arm_backbone.checkpoint.official import cluster_mask, to_official
from arm_pretrain import ARMPretrainer
from tests.helpers.runs import det_config
from tests.helpers.tools import invoke, run_tool

ARCH = dict(embed_dims=32, num_layers=4)


def state_of(model: torch.nn.Module) -> dict:
    """The state of a model, every tensor moved away from its initial value (equal scans would hide a mix-up)."""
    torch.manual_seed(1)
    return {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


@pytest.fixture
def states() -> dict[str, dict]:
    """One checkpoint of each kind, for images of 192 pixels."""
    backbone = state_of(ARM(ARCH, img_size=192))
    pretrain = state_of(ARMPretrainer(ARCH, decoder_dim=64))
    classifier = state_of(ARMClassifier(ARCH, img_size=192, num_classes=5))
    return {
        "pretrain": pretrain,
        "backbone": backbone,
        "classifier": classifier,
        "dense": {f"backbone.{k}": v for k, v in backbone.items()} | {"rpn_head.conv.weight": torch.ones(1)},
        "official-pretrain": to_official(pretrain)[0],
        "official-finetune": to_official(classifier)[0],
    }


CAN = {  # source -> possible targets; only pretraining checkpoints have a decoder and a single scan
    "pretrain": set(TARGETS),
    "official-pretrain": set(TARGETS),
    "backbone": {"backbone", "classifier", "official-finetune"},
    "dense": {"backbone", "classifier", "official-finetune"},
    "classifier": {"backbone", "classifier", "official-finetune"},
    "official-finetune": {"backbone", "classifier", "official-finetune"},
}


def is_dropped(key: str, source: str, target: str) -> bool:
    """Whether a conversion drops a tensor because the target has no place for it; it must use all others."""
    if source in ("backbone", "dense"):
        return key.startswith("rpn_head") or ("out_norms" in key and target != "backbone")
    if source in ("classifier", "official-finetune"):
        return key.startswith(("norm.", "norm_f.", "head.")) and target == "backbone"
    if target in ("pretrain", "official-pretrain"):
        return key == "mask"
    return not key.startswith(("encoder.", "layers.", "patch_embed.", "pos_embed"))


@pytest.mark.parametrize("source", CAN)
@pytest.mark.parametrize("target", TARGETS)
def test_every_kind_into_every_other(states, source, target):
    state = states[source]
    assert detect_kind(state) == source
    if target not in CAN[source]:
        with pytest.raises(CheckpointError, match="has no pretraining decoder"):
            convert(state, target)
        return
    result, accounting = convert(state, target)
    assert set(accounting.used) == set(result)
    assert all(tensor.isfinite().all() or name == "mask" for name, tensor in result.items())
    assert set(accounting.dropped) == {key for key in state if is_dropped(key, source, target)}
    assert all(accounting.dropped.values())
    again, _ = convert(result, target)
    assert again.keys() == result.keys() and all(torch.equal(again[k], result[k]) for k in result)
    if target == "backbone":
        load_trunk(ARM(ARCH, img_size=192, cls_token="middle" if "cls_token" in result else None), result, "result")
    elif target == "pretrain":
        load_exact(ARMPretrainer(ARCH, decoder_dim=64), result, "result")
    else:
        load_trunk(ARMClassifier(ARCH, img_size=192, num_classes=5), result, "result")


@pytest.mark.parametrize(("source", "target"), [("pretrain", "official-pretrain"), ("classifier", "official-finetune")])
def test_round_trips_are_bit_equal(states, source, target):
    there, _ = convert(states[source], target)
    back, _ = convert(there, source)
    assert back.keys() == states[source].keys()
    assert all(torch.equal(back[k], states[source][k]) for k in back)


def test_one_scan_becomes_four(states):
    state, accounting = convert(states["pretrain"], "backbone")
    for name, tensor in state.items():
        assert torch.equal(tensor, states["pretrain"][f"encoder.{name}"].expand_as(tensor)), name
    assert state["blocks.0.mixer.conv_weight"].shape == (4, 32, 4)
    assert set(accounting.dropped) == {k for k in states["pretrain"] if not k.startswith("encoder.")}
    assert sum(how == "one scan copied to 4" for how in accounting.used.values()) == 4 * 7


def test_class_token_at_the_tail(states):
    """Reading the authors' sequence with the wrong place of the class token gives other tensors."""
    tail, _ = convert(states["classifier"], "official-finetune", cls_token="tail")
    middle, _ = convert(states["classifier"], "official-finetune", cls_token="middle")
    own = states["classifier"]["cls_pos_embed"][:, 0]
    assert torch.equal(tail["pos_embed"][:, 144], own) and torch.equal(middle["pos_embed"][:, 72], own)
    back, _ = convert(tail, "classifier", cls_token="tail")
    assert all(torch.equal(back[k], states["classifier"][k]) for k in back)
    wrong, _ = convert(tail, "classifier", cls_token="middle")
    assert not torch.equal(wrong["pos_embed"], states["classifier"]["pos_embed"])


def test_without_a_class_token(states):
    result, accounting = convert(states["official-finetune"], "classifier", cls_token=None)
    assert "cls_token" not in result and "cls_pos_embed" not in result
    assert accounting.dropped["cls_token"] == "the target has no class token"
    model = ARMClassifier(ARCH, img_size=192, num_classes=5, cls_token=None)
    assert load_trunk(model, result, "result").new == {}
    with pytest.raises(CheckpointError, match="needs a class token; give --cls-token"):
        convert(states["classifier"], "official-finetune", cls_token=None)


def test_a_class_token_is_never_lost_silently(states):
    """A backbone without a class token refuses a classifier that has one."""
    with pytest.raises(CheckpointError, match="has a class token, and the model has none .*--cls-token none"):
        load_trunk(ARM(ARCH, img_size=192), states["classifier"], "in1k.pth")


def test_grid_and_patch_size(states):
    result, accounting = convert(states["pretrain"], "classifier", grid=(55, 55))
    assert result["pos_embed"].shape == (1, 55, 55, 32)
    assert accounting.used["pos_embed"] == "resized from 12x12 to 55x55"
    assert torch.equal(result["cls_pos_embed"], torch.zeros(1, 1, 32))  # inserted as zero by the reference code
    result, accounting = convert(states["pretrain"], "backbone", grid=(6, 12), patch_size=32)
    assert result["patch_embed.proj.weight"].shape == (32, 3, 32, 32)
    assert "resampled from patches of 16 to 32" in accounting.used["patch_embed.proj.weight"]
    # a constant image gives the same tokens through patches of twice the side
    image, bias = torch.ones(1, 3, 32, 32), result["patch_embed.proj.bias"]
    before = F.conv2d(image[..., :16, :16], states["pretrain"]["encoder.patch_embed.proj.weight"], bias)
    torch.testing.assert_close(F.conv2d(image, result["patch_embed.proj.weight"], bias), before, atol=1e-3, rtol=1e-3)
    with pytest.raises(CheckpointError, match="its own image and patch size"):
        convert(states["pretrain"], "official-pretrain", grid=(14, 14))


def test_the_model_decides_on_loading(states):
    """The model's image size, patch size, stride and number of classes may differ from the file's."""
    model = ARMClassifier(ARCH, img_size=64, patch_size=8, patch_stride=4, num_classes=3)
    accounting = load_trunk(model, states["official-finetune"], "in1k.pth")
    assert accounting.used["pos_embed"] == "resized from 12x12 to 15x15"
    assert set(accounting.new) == {"head.weight", "head.bias"}
    assert accounting.dropped["head.weight"] == "for 5 classes, the model has 3"
    assert torch.equal(model.norm.weight, states["classifier"]["norm.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"layers.0.mixer.surprise": torch.ones(1)}), "unknown tensors: layers.0.mixer.surprise"),
        (lambda s: s.pop("layers.1.mixer.D_c_b"), "blocks.1.mixer.D exists for 3 of 4 directions"),
        (lambda s: s.pop("layers.2.mlp.w1.bias"), "missing .*blocks.2.mlp.w1.bias"),
        (lambda s: s.update(pos_embed=torch.ones(1, 12, 32)), "11 patches, which is not a square"),
        (lambda s: s.update({"layers.3.norm1.weight": torch.ones(7)}), "another shape .*blocks.3.norm1.weight"),
        (lambda s: s.pop("patch_embed.proj.weight"), "not complete: no patch_embed.proj.weight"),
    ],
)
def test_damaged_files_of_the_authors(states, change, message):
    state = dict(states["official-finetune"])
    change(state)
    with pytest.raises(CheckpointError, match=message):
        convert(state, "classifier")


@pytest.mark.parametrize("kind", ["pretrain", "backbone", "classifier"])
def test_a_tensor_of_unknown_name_is_refused(states, kind):
    with pytest.raises(CheckpointError, match=f"1 tensors of a {kind} checkpoint are unknown: surprise"):
        convert(states[kind] | {"surprise": torch.ones(1)}, "backbone")


def test_sizes_are_inferred_from_the_weights(states):
    expected = dict(arch=ARCH, img_size=(192, 192), patch_size=16, patch_stride=16, in_chans=3)
    for kind, scans, cls_token in (
        ("pretrain", 1, None),
        ("official-pretrain", 1, None),
        ("backbone", 4, None),
        ("dense", 4, None),
        ("classifier", 4, "middle"),
        ("official-finetune", 4, "middle"),
    ):
        assert arch_of(states[kind]) == expected | dict(scans=scans, cls_token=cls_token), kind
    grey = convert(state_of(ARM(ARCH, img_size=(32, 80), patch_size=8, patch_stride=8, in_chans=1)), "backbone")[0]
    assert arch_of(grey) == expected | dict(
        img_size=(32, 80), patch_size=8, patch_stride=8, in_chans=1, scans=4, cls_token=None
    )
    for name, tensor in (("pos_embed", torch.ones(1, 144, 32)), ("patch_embed.proj.weight", torch.ones(3))):
        with pytest.raises(CheckpointError, match=f"{name} has shape .* expected 4 dimensions"):
            arch_of(states["backbone"] | {name: tensor})


@pytest.mark.parametrize("target", ["backbone", "classifier"])
def test_a_trunk_that_is_not_complete(states, target):
    for gone in ("pos_embed", "patch_embed.proj.weight", "blocks.3.norm2.bias"):
        state = {name: tensor for name, tensor in states["backbone"].items() if name != gone}
        with pytest.raises(CheckpointError, match=f"not complete: .*{gone}"):
            convert(state, target)
        with pytest.raises(CheckpointError, match=f"x.pth does not fit the model: .*missing .*{gone}"):
            load_trunk(ARMClassifier(ARCH, img_size=192), state, "x.pth")


def test_a_decoder_that_is_not_complete(states):
    for gone in ("mask_token", "decoder.blocks.3.attention.q.bias"):
        state = {k: v for k, v in states["pretrain"].items() if k != gone}
        with pytest.raises(CheckpointError, match=f"not complete: .*{gone}"):
            convert(state, "pretrain")
        convert(state, "backbone")  # which needs no decoder


def test_masks_of_other_sizes():
    assert cluster_mask(32).tolist() == torch.zeros(16, 16).tolist()
    mask = cluster_mask(48)
    assert mask[:16, 16:].eq(-torch.inf).all() and (mask[16:] == 0).all() and (mask[:16, :16] == 0).all()


def authors_file(path, states, **more):
    namespace = argparse.Namespace(lr=None, blr=1.5e-4, data_path="x", output_dir="y")
    optimizer = dict(state={0: dict(step=torch.tensor(1.0), exp_avg=torch.ones(3))}, param_groups=[dict(lr=1.0)])
    torch.save(dict(model=states, optimizer=optimizer, epoch=99, scaler={}, args=namespace, **more), path)


def test_command_line_on_a_file_of_the_authors(states, tmp_path):
    source, target = tmp_path / "checkpoint-99.pth", tmp_path / "arm.safetensors"
    ema = {k: v + 1 for k, v in states["official-finetune"].items()}
    authors_file(source, states["official-finetune"], model_ema=ema)
    done = invoke("convert_checkpoint.py", source, target, "--to", "classifier", "--ema", "--img-size", 64, 96)
    assert done.returncode == 0, done.stderr
    assert "(official-finetune, EMA, " in done.stdout and "4 directions stacked" in done.stdout
    state = model_state(read_checkpoint(target))
    assert state["pos_embed"].shape == (1, 4, 6, 32)
    torch.testing.assert_close(state["head.bias"], states["classifier"]["head.bias"] + 1)

    back = tmp_path / "back.pth"
    done = invoke("convert_checkpoint.py", source, back, "--to", "official-finetune")
    assert done.returncode == 0, done.stderr
    written = torch.load(back, weights_only=True)["model"]  # what the authors' script reads
    assert all(torch.equal(written[k], v) for k, v in states["official-finetune"].items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "pretrain"], "has no pretraining decoder"),
        (["--to", "classifier", "--ema"], "has no EMA weights"),
        (["--to", "classifier", "--img-size", "8"], "--img-size 8: give one size"),
        (["--to", "classifier", "--patch-stride", "8"], "--patch-stride needs --img-size"),
    ],
)
def test_command_line_errors_are_one_line_and_leave_no_file(states, tmp_path, arguments, message):
    source, target = tmp_path / "source.pth", tmp_path / "target.pth"
    authors_file(source, states["official-finetune"])
    done = invoke("convert_checkpoint.py", source, target, *arguments)
    assert done.returncode == 2 and not target.exists()
    assert len(done.stderr.strip().splitlines()) == 1 and message in done.stderr


class Hostile:
    def __reduce__(self):
        return os.system, ("touch arm_was_here",)


def test_hostile_files(states, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("optimizer", "args"):
        source = tmp_path / f"{place}.pth"
        torch.save(dict(model=states["official-finetune"], **{place: Hostile()}), source)
        done = invoke("convert_checkpoint.py", source, "out.pth", "--to", "classifier", cwd=tmp_path)
        assert done.returncode == 2 and "--trust" in done.stderr and source.name in done.stderr
        assert not (tmp_path / "arm_was_here").exists() and not (tmp_path / "out.pth").exists()
    done = invoke("convert_checkpoint.py", source, "out.pth", "--to", "classifier", "--trust", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "arm_was_here").exists()  # that is what --trust means


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_and_empty_files(states, tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    write_checkpoint(whole, states["backbone"], {})
    for name, content in (("cut", whole.read_bytes()[:-5000]), ("empty", b""), ("text", b"<html>404</html>")):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=path.name):
            read_checkpoint(path)


def test_checkpoints_of_other_models(tmp_path):
    for name, state in (
        ("resnet", {"conv1.weight": torch.ones(1)}),
        ("empty", {}),
        ("vim", {"layers.0.x": torch.ones(1)}),
    ):
        path = tmp_path / f"{name}.pth"
        torch.save(dict(model=state), path)
        with pytest.raises(CheckpointError, match="no ARM weights|has no model weights"):
            convert(model_state(read_checkpoint(path)), "backbone")


@pytest.mark.slow
def test_a_file_of_the_authors_starts_a_detector(states, shapes, tmp_path):
    """Converting, training in two processes and loading with mmdet give no warning about weights."""
    from mmdet.apis import init_detector

    source, converted = tmp_path / "checkpoint-99.pth", tmp_path / "arm_in1k.pth"
    authors_file(source, states["official-finetune"], model_ema=states["official-finetune"])
    done = invoke("convert_checkpoint.py", source, converted, "--to", "classifier", "--ema")
    assert done.returncode == 0, done.stderr
    cfg = det_config(shapes)
    cfg.model.backbone.update(
        arch=ARCH, img_size=192, cls_token="middle", init_cfg=dict(type="Pretrained", checkpoint=str(converted))
    )
    cfg.train_dataloader.num_batch_per_epoch = 2
    cfg.train_cfg.max_epochs = 1
    cfg.dump(tmp_path / "config.py")
    done = run_tool("dist_train.sh", "config.py", 2, "--work-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tensors copied" in done.stdout and "tensors new: output norms" in done.stdout
    loud = [line for line in done.stdout.splitlines() if "WARN" in line or "ERROR" in line]
    loud = [line for line in loud if re.search("weight|state_dict|missing|unexpected|checkpoint", line, re.I)]
    assert not loud
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = init_detector(str(tmp_path / "config.py"), str(tmp_path / "run/epoch_1.pth"), device="cpu")
    assert not [w for w in caught if re.search("weight|missing|unexpected|mismatch", str(w.message), re.I)]
    trained = model_state(read_checkpoint(tmp_path / "run/epoch_1.pth"))
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())
