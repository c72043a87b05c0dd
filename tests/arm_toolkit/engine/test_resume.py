"""A resumed run has the curve and weights of an uninterrupted one; no checkpoint is lost or needs unpickling."""

import functools
import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.fileio.backends import LocalBackend
from PIL import Image
from pycocotools import mask as rle

from arm_backbone.checkpoint.files import CheckpointError, read_checkpoint
from arm_toolkit.engine.checkpoint_hook import SafeCheckpointHook
from tests.helpers.runs import CONFIGS, Stopped, det_config, logged, pretrain_config, seg_config, train
from tests.helpers.tools import call_tool, run_tool
from tests.helpers.weights import assert_same_weights, weights

pytestmark = pytest.mark.xdist_group("resume")
TIMES = {"time", "data_time", "images_per_s", "loader_images_per_s"}


@pytest.fixture(scope="module")
def data(shapes, tmp_path_factory) -> Path:
    """The shapes, with every other training image of the detector cropped to portrait, for groups by aspect ratio."""
    folder = tmp_path_factory.mktemp("data") / "portraits"
    shutil.copytree(shapes, folder)
    file = folder / "coco/annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    for image in content["images"][::2]:
        path = folder / "coco/train2017" / image["file_name"]
        picture = Image.open(path).crop((0, 0, 72, 96))
        path.unlink()
        picture.save(path)
        image["width"] = 72
        for ann in [ann for ann in content["annotations"] if ann["image_id"] == image["id"]]:
            cut = np.asfortranarray(rle.decode(ann["segmentation"])[:, :72])
            encoded = rle.encode(cut)
            ann["segmentation"] = dict(encoded, counts=encoded["counts"].decode())
            ann.update(bbox=rle.toBbox(encoded).tolist(), area=float(rle.area(encoded)))
    content["annotations"] = [ann for ann in content["annotations"] if ann["area"] > 16]
    file.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Callable[[str], Path]:
    """Work dir of the uninterrupted run of a kind; each is trained once."""

    @functools.cache
    def run(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind) / "whole"
        train(CONFIGS[kind](data), folder)
        return folder

    return run


def assert_same_curve(one: Path, other: Path, iterations: int) -> None:
    """Compare all that was logged in every iteration (learning rates, losses, gradient norms, …) except times."""
    one, other = logged(one), logged(other)
    assert sorted(one) == sorted(other) == list(range(1, iterations + 1))
    assert {"lr", "loss"} < set(one[1])
    for step in one:
        assert one[step].keys() == other[step].keys()
        for key in one[step].keys() - TIMES:
            assert other[step][key] == pytest.approx(one[step][key], rel=1e-6), f"{key} of iteration {step}"


def scramble() -> None:
    """Change the random states, as a new process would."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


# kind, iteration at which the run dies, iteration of its last checkpoint, number of iterations, final checkpoint
RUNS = [("pretrain", 10, 8, 16, "epoch_4.pth"), ("det", 10, 8, 16, "epoch_2.pth"), ("seg", 6, 4, 8, "iter_8.pth")]


@pytest.mark.parametrize(("kind", "dies_at", "saved_at", "iterations", "last"), RUNS, ids=CONFIGS)
def test_resumed_run_equals_the_uninterrupted(kind, dies_at, saved_at, iterations, last, data, whole, tmp_path):
    """Random draws continue, too: crops, colours, drop path, dropout, proposals, and the batches by aspect ratio."""
    folder = whole(kind)
    with pytest.raises(Stopped):
        train(CONFIGS[kind](data, custom_hooks=[dict(type="StopAt", iteration=dies_at)]), tmp_path / "parts")
    before = len(list((tmp_path / "parts").glob("*/vis_data/scalars.json")))
    scramble()
    runner = train(CONFIGS[kind](data), tmp_path / "parts", "--resume")
    assert before == 1 and runner.iter == iterations
    assert len(runner.message_hub.get_scalar("train/loss").data[0]) == iterations  # its history continues, too
    resumed = [json.loads(line) for line in Path(runner.log_dir, "vis_data/scalars.json").read_text().splitlines()]
    resumed = [line for line in resumed if "loss" in line]
    assert resumed[-(iterations - saved_at)]["iter"] == saved_at + 1
    assert_same_curve(folder, tmp_path / "parts", iterations)
    assert_same_weights(folder / last, tmp_path / "parts" / last, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_resumes_in_a_new_process_from_a_given_file(data, whole, tmp_path):
    """Uses the detector, whose run draws the most random numbers."""
    det_config(data).dump(tmp_path / "config.py")
    folder = whole("det")
    checkpoint = folder / "epoch_1.pth"
    result = run_tool("train.py", tmp_path / "config.py", "--work-dir", tmp_path / "rest", "--resume", checkpoint)
    assert result.returncode == 0, result.stderr
    before, rest = logged(folder), logged(tmp_path / "rest")
    assert sorted(rest) == list(range(9, 17))
    for step in rest:
        for key in ("lr", "loss"):
            assert rest[step][key] == pytest.approx(before[step][key], rel=1e-6)
    assert_same_weights(folder / "epoch_2.pth", tmp_path / "rest/epoch_2.pth", rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_resumes_with_another_number_of_processes(data, tmp_path):
    """1 process of 4 images, then 2 of 2. SGD is used, as Adam would amplify the rounding errors of a zero gradient."""
    sgd = {
        "optim_wrapper.optimizer": dict(_delete_=True, type="SGD", lr=0.1, momentum=0.9),
        "default_hooks.checkpoint.interval": 2,
    }
    train(pretrain_config(data, **sgd), tmp_path / "one")
    cfg = pretrain_config(data, **sgd)
    cfg.train_dataloader.batch_size = 2
    cfg.dump(tmp_path / "config.py")
    start = tmp_path / "one/epoch_2.pth"
    arguments = ("--work-dir", tmp_path / "two", "--resume", start)
    result = run_tool("dist_train.sh", tmp_path / "config.py", 2, *arguments)
    assert result.returncode == 0, result.stderr
    assert sorted(logged(tmp_path / "two")) == list(range(9, 17))
    assert_same_weights(tmp_path / "one/epoch_4.pth", tmp_path / "two/epoch_4.pth", rtol=1e-5, atol=1e-6)
    moved = weights(start)["mask_token"] - weights(tmp_path / "one/epoch_4.pth")["mask_token"]
    assert moved.abs().max() > 1e-3  # the weights moved, so the test can fail


def test_a_seed_that_nobody_set_is_resumed_too(data, tmp_path):
    free = {"randomness.seed": None, "train_cfg.max_iters": 4, "default_hooks.checkpoint.interval": 2}
    train(seg_config(data, **free), tmp_path / "whole")
    scramble()
    train(seg_config(data, **free), tmp_path / "rest", "--resume", str(tmp_path / "whole/iter_2.pth"))
    whole, rest = logged(tmp_path / "whole"), logged(tmp_path / "rest")
    assert [rest[step]["loss"] for step in (3, 4)] == pytest.approx([whole[step]["loss"] for step in (3, 4)])


@pytest.fixture(scope="module")
def validated(data, tmp_path_factory) -> Path:
    """Work dir of a segmentation run that keeps its best checkpoint."""
    folder = tmp_path_factory.mktemp("validated")
    options = {"default_hooks.checkpoint.save_best": "mIoU", "train_cfg.val_interval": 4, "train_cfg.val_begin": 1}
    train(seg_config(data, validate=True, **options, **{"train_cfg.max_iters": 4}), folder)
    return folder


@pytest.mark.parametrize("kind", [*CONFIGS, "validated"])
def test_checkpoints_hold_no_foreign_objects(kind, whole, request):
    """Periodic checkpoints, with their training state, and the best checkpoint load with weights_only=True."""
    folder = request.getfixturevalue("validated") if kind == "validated" else whole(kind)
    files = sorted(folder.glob("*.pth"))
    assert len(files) == 2
    assert files[0].name.startswith("best") == (kind == "validated")
    for file in files:
        assert torch.serialization.get_unsafe_globals_in_checkpoint(file) == []
        checkpoint = torch.load(file, weights_only=True)
        assert checkpoint["meta"]["iter"] > 0
        if not file.name.startswith("best"):
            assert checkpoint["optimizer"]["state"] and checkpoint["param_schedulers"]
            losses = checkpoint["message_hub"]["log_scalars"]["train/loss"]["log_history"]
            assert len(losses) == checkpoint["meta"]["iter"]


@pytest.mark.parametrize("where", ["while pickling", "while writing"])
def test_death_in_writing_a_checkpoint_loses_nothing(where, data, tmp_path, monkeypatch):
    """With max_keep_ckpts=1 the old checkpoint is removed only when the new one is complete."""
    put, save, calls = LocalBackend.put, torch.save, []

    def half_put(self, content, path):
        calls.append(path)
        put(self, content if len(calls) == 1 else content[: len(content) // 2], path)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")

    def half_save(checkpoint, file):
        calls.append(file)
        save(checkpoint, file)
        if len(calls) > 1:
            file.truncate(1000)
            raise OSError(28, "No space left on device")

    if where == "while pickling":
        monkeypatch.setattr(torch, "save", half_save)
    else:
        monkeypatch.setattr(LocalBackend, "put", half_put)
    cfg = pretrain_config(data, **{"default_hooks.checkpoint.max_keep_ckpts": 1})
    with pytest.raises(CheckpointError, match="epoch_4.pth cannot be written .No space left on device"):
        train(cfg, tmp_path)
    monkeypatch.undo()
    assert len(calls) == 2
    assert [file.name for file in tmp_path.glob("*.pth*")] == ["epoch_2.pth"]
    assert read_checkpoint(tmp_path / "epoch_2.pth")["meta"]["epoch"] == 2
    assert train(cfg, tmp_path, "--resume").epoch == 4
    assert [file.name for file in tmp_path.glob("*.pth*")] == ["epoch_4.pth"]  # now the old one is removed


def test_outdated_checkpoints_are_removed_last_unless_written_again(tmp_path):
    """A resumed run can write its best checkpoint under the name of an outdated one, which must then stay."""
    hook = SafeCheckpointHook(by_epoch=False, save_best="mIoU")
    runner = SimpleNamespace(work_dir=str(tmp_path), logger=logging.getLogger(), message_hub=SimpleNamespace())
    runner.message_hub.runtime_info = {}
    hook.before_train(runner)
    old, again = tmp_path / "best_mIoU_iter_2.pth", tmp_path / "best_mIoU_iter_4.pth"
    for file in (old, again):
        file.write_bytes(b"")
        hook.file_backend.remove(str(file))
    assert hook.file_backend.isfile(str(old)) and again.exists()
    hook.best_ckpt_path = str(again)
    hook.after_val_epoch(runner, {})  # saves nothing, but removes outdated checkpoints
    assert not old.exists() and again.exists()


def test_nothing_to_resume_is_one_line(data, tmp_path, capsys):
    cfg = tmp_path / "config.py"
    seg_config(data).dump(cfg)
    for arguments, expected in (
        (
            ["--resume"],
            f"error: --resume: {tmp_path}/empty contains no checkpoint; omit --resume to start from the beginning\n",
        ),
        (
            ["--resume", "gone.pth"],
            "error: gone.pth does not exist; give the path of an existing .pth or .safetensors file\n",
        ),
    ):
        assert call_tool("train.py", cfg, "--work-dir", tmp_path / "empty", *arguments) == 2
        assert capsys.readouterr().err == expected
    assert not (tmp_path / "empty").exists()


def test_a_checkpoint_of_another_model_is_not_resumed(data, tmp_path):
    train(seg_config(data, **{"train_cfg.max_iters": 2}), tmp_path / "seg")
    wider = seg_config(data, **{"model.decode_head.channels": 24})
    with pytest.raises(CheckpointError, match="does not fit the model"):
        train(wider, tmp_path / "other", "--resume", str(tmp_path / "seg/iter_2.pth"))
