"""Checkpoint files: read safely, written completely, loaded only if every tensor fits."""

import argparse
import os
import pickle

import pytest
import torch

from arm_backbone import ARM
from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint, write_checkpoint
from arm_backbone.checkpoint.load import load_exact, load_trunk
from arm_pretrain import ARMPretrainer
from tests.helpers.tools import invoke


@pytest.fixture
def pretrained(tmp_path, small_arch):
    """A pretraining model, and the path of its checkpoint."""
    torch.manual_seed(0)
    model = ARMPretrainer(small_arch, img_size=96, cluster_side=2, decoder_dim=64)
    path = tmp_path / "pretrain.pth"
    torch.save(dict(meta=dict(epoch=3), state_dict=model.state_dict()), path)
    return model, path


def test_converted_weights_give_the_same_features(pretrained, small_arch):
    """With one scan, the backbone computes what the pretraining encoder computes on the same sequence."""
    model, path = pretrained
    backbone = ARM(small_arch, img_size=96, scans=1, out_indices=(3,)).eval()
    load_trunk(backbone, model_state(read_checkpoint(path)), str(path))
    images = torch.randn(1, 3, 96, 96)
    tokens = (model.encoder.patch_embed(images) + model.encoder.pos_embed).flatten(1, 2)
    *_, last = model.encoder.block_outputs(tokens, torch.arange(36)[None])
    expected = backbone.out_norms[0](last).transpose(1, 2).unflatten(2, (6, 6))
    torch.testing.assert_close(backbone(images)[0], expected)


def test_position_embedding_is_resized_to_the_model(pretrained, small_arch):
    _, path = pretrained
    backbone = ARM(small_arch, img_size=(64, 128))
    accounting = load_trunk(backbone, model_state(read_checkpoint(path)), str(path))
    assert accounting.used["pos_embed"] == "resized from 6x6 to 4x8"
    assert set(accounting.new) == {f"out_norms.{i}.{n}" for i in range(4) for n in ("weight", "bias")}


def test_command_line_conversion(pretrained, tmp_path, small_arch):
    _, path = pretrained
    for suffix in (".pth", ".safetensors"):
        target = tmp_path / f"backbone{suffix}"
        done = invoke("convert_checkpoint.py", path, target, "--to", "backbone", "--img-size", 64)
        assert done.returncode == 0, done.stderr
        assert "one scan copied to 4" in done.stdout and "belongs to pretraining only" in done.stdout
        checkpoint = read_checkpoint(target)
        state = model_state(checkpoint)
        assert state["pos_embed"].shape == (1, 4, 4, 32)
        assert str(checkpoint["meta"]["format_version"]) == "1"
        load_trunk(ARM(small_arch, img_size=64), state, str(target))


def test_command_line_errors_leave_no_file(tmp_path):
    source, target = tmp_path / "gone.pth", tmp_path / "out.pth"
    done = invoke("convert_checkpoint.py", source, target, "--to", "backbone")
    assert done.returncode == 2 and done.stderr.strip().splitlines() == [
        f"error: {source} does not exist; give the path of an existing .pth or .safetensors file"
    ]
    torch.save({"fc.weight": torch.zeros(2)}, source)
    done = invoke("convert_checkpoint.py", source, target, "--to", "backbone")
    assert done.returncode == 2 and "no ARM weights" in done.stderr and not target.exists()


def test_missing_pretrained_file_names_the_conversion():
    with pytest.raises(
        CheckpointError, match="tools/convert_checkpoint.py .* checkpoints/arm_b_pretrain.pth --to backbone"
    ):
        read_checkpoint("checkpoints/arm_b_pretrain.pth")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/arm_was_here",)


def test_files_that_run_code_are_refused(tmp_path):
    path = tmp_path / "hostile.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Hostile()}, path)
    with pytest.raises(CheckpointError, match="execute code.*--trust"):
        read_checkpoint(path)
    torch.save({"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=1)}, path)
    assert read_checkpoint(path)["args"].lr == 1


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps([1, 2])])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_broken_files_are_named(tmp_path, content, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="broken"):
        read_checkpoint(path)


def test_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cut.pth is not a complete"):
        read_checkpoint(path)


def test_weights_that_do_not_fit_are_refused(pretrained, small_arch):
    model, path = pretrained
    state = model_state(read_checkpoint(path))
    wide = ARM(dict(embed_dims=48, num_layers=4), img_size=96)
    before = {k: v.clone() for k, v in wide.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"tensors have another shape \("):
        load_trunk(wide, state, "pretrain.pth")
    deep = ARM(dict(embed_dims=32, num_layers=5), img_size=96)
    with pytest.raises(CheckpointError, match="of the model are missing .*blocks.4"):
        load_trunk(deep, state, "pretrain.pth")
    with pytest.raises(CheckpointError, match="unknown to the model.*It is a pretrain checkpoint"):
        load_exact(ARM(small_arch, img_size=96), state, "pretrain.pth")
    assert all(torch.equal(v, before[k]) for k, v in wide.state_dict().items())


def test_four_different_scans_never_become_one(small_arch):
    state = ARM(small_arch, img_size=96).state_dict()
    with pytest.raises(CheckpointError, match="has 4 scans, the model 1"):
        load_trunk(ARM(small_arch, img_size=96, scans=1), state, "four.pth")


def test_files_are_written_completely_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "out.pth"
    write_checkpoint(target, {"a": torch.zeros(1)}, {})
    old = target.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(target, {"a": torch.ones(1)}, {})
    assert target.read_bytes() == old and list(tmp_path.iterdir()) == [target]
