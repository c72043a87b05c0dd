"""VMamba's weights convert between the authors' form and ours, both ways, and every tensor is accounted for."""

import argparse
import re

import pytest
import torch

from arm_backbone import ARM, VMamba, VMambaClassifier
from arm_backbone.checkpoint.convert import convert, detect_kind
from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_exact, load_trunk
from arm_backbone.checkpoint.vmamba import vmamba_arch_of
from arm_backbone.checkpoint.vmamba_official import to_official
from tests.helpers.small_models import ARCH, VMAMBA_ARCH
from tests.helpers.tools import invoke


def state_of(model: torch.nn.Module) -> dict:
    """The state of a model, every tensor moved away from its initial value (equal directions would hide a mix-up)."""
    torch.manual_seed(1)
    return {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


@pytest.fixture
def classifier() -> dict:
    return state_of(VMambaClassifier(VMAMBA_ARCH, num_classes=5))


@pytest.fixture
def backbone() -> dict:
    return state_of(VMamba(VMAMBA_ARCH))


OLDER = {  # present: older names
    r"^patch_embed\.0\.": "patch_embed.proj.",
    r"^patch_embed\.2\.": "patch_embed.norm.",
    r"(blocks\.\d+)\.norm\.": r"\1.ln_1.",
    r"\.op\.": ".self_attention.",
    r"^classifier\.": "",
}


def older(state: dict) -> dict:
    """The authors' tensors as older files have them: other names, linear weights as 1 x 1 convolutions."""
    result = {}
    for name, tensor in state.items():
        if tensor.ndim == 2 and name.endswith(("proj.weight", "fc1.weight", "fc2.weight")):
            tensor = tensor[:, :, None, None]
        for present, old in OLDER.items():
            name = re.sub(present, old, name)
        result[name] = tensor
    return result


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_both_ways_bit_equal_with_present_and_older_names(classifier):
    theirs, accounting = convert(classifier, "official-finetune")
    assert same(theirs, to_official(classifier)[0]) and set(accounting.used) == set(theirs) and not accounting.dropped
    assert detect_kind(theirs) == detect_kind(older(theirs)) == "official-finetune"
    assert not [name for name in older(theirs) if re.search("|".join(OLDER), name)]
    for file in (theirs, older(theirs)):
        ours, accounting = convert(file, "classifier")
        assert same(ours, classifier) and set(accounting.used) == set(ours) and not accounting.dropped
        assert same(convert(file, "official-finetune")[0], theirs)


def test_backbones(classifier, backbone):
    """From a classifier, from the authors' file and from a detector; the levels' norms start anew, or are kept."""
    trunk = {name: tensor for name, tensor in classifier.items() if not name.startswith(("norm.", "head."))}
    for file in (classifier, convert(classifier, "official-finetune")[0]):
        result, accounting = convert(file, "backbone")
        assert same(result, trunk) and len(accounting.used) + len(accounting.dropped) == len(file)
        model = VMamba(VMAMBA_ARCH)
        for source in (result, file):  # converted, or directly
            new = load_trunk(model, source, "file").new
            assert len(new) == 8 and all(name.startswith("out_norms.") for name in new)
            assert same({name: model.state_dict()[name] for name in trunk}, trunk)
    dense = {f"backbone.{name}": tensor for name, tensor in backbone.items()} | {"rpn_head.conv.weight": torch.ones(1)}
    assert detect_kind(dense) == "dense" and detect_kind(backbone) == "backbone"
    result, accounting = convert(dense, "backbone")
    assert same(result, backbone) and set(accounting.dropped) == {"rpn_head.conv.weight"}
    load_exact(VMamba(VMAMBA_ARCH), result, "file")
    assert vmamba_arch_of(result) == dict(arch=VMAMBA_ARCH, in_chans=3)
    fewer = VMamba(VMAMBA_ARCH, out_indices=(1, 3))
    assert same(convert(fewer.state_dict(), "backbone")[0], fewer.state_dict())
    with pytest.raises(CheckpointError, match="file does not fit the model"):  # the norm of another stage
        load_trunk(fewer, result, "file")
    load_trunk(VMambaClassifier(VMAMBA_ARCH), convert(result, "classifier")[0], "file")


def test_heads_and_image_channels(classifier):
    model = VMambaClassifier(VMAMBA_ARCH, num_classes=7, in_chans=1)
    accounting = load_trunk(model, classifier, "in1k.pth")
    assert set(accounting.dropped.values()) == {"for 5 classes, the model has 7"}
    assert set(accounting.new) == {"head.weight", "head.bias"}
    torch.testing.assert_close(model.stem[0].conv.weight, classifier["stem.0.conv.weight"].sum(1, keepdim=True))


def test_what_does_not_fit_is_one_clear_line(classifier):
    arm = state_of(ARM(ARCH, img_size=64))
    theirs = convert(classifier, "official-finetune")[0]
    without = lambda part: {name: tensor for name, tensor in theirs.items() if part not in name}  # noqa: E731
    deep = VMAMBA_ARCH | dict(depths=(1, 1, 3, 1))
    cases = (
        (lambda: load_trunk(ARM(ARCH, img_size=64), theirs, "vssm.pth"), "holds VMamba .*the model is ARM"),
        (lambda: load_trunk(VMamba(VMAMBA_ARCH), arm, "arm.pth"), "arm.pth .*holds ARM .*the model is VMamba"),
        (lambda: load_trunk(VMamba(deep), theirs, "vssm.pth"), r"missing \(stages.2.blocks.2"),
        (lambda: convert(theirs, "pretrain"), "VMamba has no pretraining decoder"),
        (lambda: convert(theirs, "backbone", grid=(14, 14)), "omit --img-size"),
        (lambda: convert(theirs | {"layers.x": torch.ones(1)}, "backbone"), "unknown tensors: layers.x"),
        (lambda: convert(theirs | {"norm.weight": torch.ones(1)}, "backbone"), "the same tensor"),
        (lambda: convert(without("3.blocks.0.op.A"), "backbone"), r"3.blocks.0.mixer.A_log"),
        (lambda: convert(without("layers.3"), "backbone"), "no stages.3"),
        (lambda: convert(without("head"), "classifier"), "head.weight"),
        (lambda: convert(theirs | {"patch_embed.5.bias": torch.full((16,), torch.nan)}, "backbone"), "NaN"),
        (
            lambda: convert(theirs | {"patch_embed.0.weight": torch.ones(8, 3)}, "backbone"),
            r"\(8, 3\), which no VMamba has",
        ),
        (lambda: convert(theirs | {"layers.0.blocks.0.op.Ds": torch.ones(3)}, "backbone"), r"mixer.D \(3,\)"),
    )
    for call, message in cases:
        with pytest.raises(CheckpointError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_the_tool_refuses_image_sizes(classifier, tmp_path):
    torch.save(classifier, tmp_path / "small.pth")
    for option in ("--img-size", "--patch-size"):
        done = invoke(
            "convert_checkpoint.py", tmp_path / "small.pth", tmp_path / "x.pth", "--to", "backbone", option, 256
        )
        assert done.returncode and "omit --img-size and --patch-size" in done.stderr
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.slow
def test_a_full_size_file_of_the_authors_through_the_tool(tmp_path):
    """VMamba-B with random weights, optimizer and args: to backbone and classifier, and back, bit by bit."""
    torch.manual_seed(0)
    theirs = to_official(VMambaClassifier("base").state_dict())[0]
    ema = theirs | {name: tensor + 1 for name, tensor in theirs.items() if "classifier" in name}
    moments = {i: dict(step=torch.tensor(3.0), exp_avg=torch.rand(4)) for i in range(5)}
    optimizer = dict(state=moments, param_groups=[dict(lr=1e-3, params=list(moments))])
    source, backbone, classifier, back = (tmp_path / f"{n}.pth" for n in ("source", "backbone", "classifier", "back"))
    args = argparse.Namespace(lr=1e-3, model="vmamba")
    torch.save(dict(model=theirs, model_ema=ema, optimizer=optimizer, args=args, epoch=237), source)
    for target, kind, dropped, options in ((backbone, "backbone", 4, ()), (classifier, "classifier", 0, ("--ema",))):
        done = invoke("convert_checkpoint.py", source, target, "--to", kind, *options)
        assert done.returncode == 0, done.stderr
        assert f"402 tensors) -> {target} ({kind}, {402 - dropped} tensors)" in done.stdout
        assert f"{402 - dropped} tensors copied" in done.stdout
        assert (f"{dropped} tensors dropped" in done.stdout) == bool(dropped)
    state = model_state(read_checkpoint(backbone))
    assert sum(tensor.numel() for tensor in state.values()) == 87532800 - 2 * 1024  # without head and norm
    load_trunk(VMamba("base"), state, "backbone")
    done = invoke("convert_checkpoint.py", classifier, back, "--to", "official-finetune")
    assert done.returncode == 0, done.stderr
    assert same(read_checkpoint(back)["model"], ema)
