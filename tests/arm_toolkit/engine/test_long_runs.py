"""Long training: resume anywhere, survive kills at any time, stop at a non-finite loss."""

import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from arm_pretrain import ARMPretrainer
from arm_toolkit.engine.newest import newest_checkpoint
from arm_toolkit.errors import NotFinite
from tests.helpers.paths import ROOT
from tests.helpers.runs import logged, pretrain_config, train
from tests.helpers.tools import call_tool, run_tool

pytestmark = pytest.mark.xdist_group("long runs")
EVERY = {
    "train_cfg.max_epochs": 3,  # of 4 iterations
    "default_hooks.checkpoint.interval": 1,
    "default_hooks.checkpoint.by_epoch": False,
}


def weights(path) -> dict:
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same(one, two) -> None:
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def every_iteration(shapes, accumulated: int = 1):
    """A run of 12 iterations with a checkpoint after each, and an optimizer step every `accumulated` iterations."""
    return pretrain_config(shapes, **EVERY, **{"optim_wrapper.accumulative_counts": accumulated})


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory) -> Callable[[int], Path]:
    """Work dir of the uninterrupted run for a number of iterations per step; each is trained once."""

    @functools.cache
    def run(accumulated: int = 1) -> Path:
        folder = tmp_path_factory.mktemp(f"whole{accumulated}") / "whole"
        train(every_iteration(shapes, accumulated), folder)
        return folder

    return run


# 4 iterations per epoch; with three per optimizer step, 2 and 8 are in the middle of a step
@pytest.mark.parametrize(("stopped", "accumulated"), [(5, 1), (8, 1), (2, 3), (8, 3)])
def test_resuming_within_an_epoch_is_bit_equal(shapes, whole, tmp_path, stopped, accumulated):
    """The cases include the end of an epoch and the middle of a gradient accumulation."""
    folder = whole(accumulated)
    checkpoint, last = folder / f"iter_{stopped}.pth", folder / "iter_12.pth"
    train(every_iteration(shapes, accumulated), tmp_path / "rest", "--resume", str(checkpoint))
    assert_same(last, tmp_path / "rest/iter_12.pth")
    moved = weights(checkpoint)["mask_token"] - weights(last)["mask_token"]
    assert moved.abs().max() > 1e-6  # the weights moved, so the test can fail
    assert torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint) == []


def test_resuming_in_bfloat16_with_a_moving_average_is_bit_equal(shapes, tmp_path):
    """With two iterations per step, 5 is in the middle of a step and 4 at the end of an epoch."""
    cfg = every_iteration(shapes, accumulated=2)
    cfg.custom_hooks.append(dict(type="WeightEMAHook", decay=0.9))
    train(cfg, tmp_path / "whole", "--amp")
    for stopped in (4, 5):
        train(cfg, tmp_path / f"rest{stopped}", "--amp", "--resume", str(tmp_path / f"whole/iter_{stopped}.pth"))
        assert_same(tmp_path / "whole/iter_12.pth", tmp_path / f"rest{stopped}/iter_12.pth")
    last = torch.load(tmp_path / "whole/iter_12.pth", weights_only=True)
    average, current = last["state_dict"], last["ema_state_dict"]
    assert not torch.equal(average["mask_token"], current["module.mask_token"])


def test_bfloat16_is_near_float32(shapes, tmp_path):
    cfg = pretrain_config(shapes, **{"train_cfg.max_epochs": 2})
    train(cfg, tmp_path / "float32")
    train(cfg, tmp_path / "bfloat16", "--amp")
    one, two = logged(tmp_path / "float32"), logged(tmp_path / "bfloat16")
    for step in one:
        assert one[step]["loss"] != two[step]["loss"]
        assert one[step]["loss"] == pytest.approx(two[step]["loss"], rel=0.01)
    state = weights(tmp_path / "bfloat16/epoch_2.pth")
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_a_resumed_epoch_sees_the_rest_of_its_images(shapes, tmp_path):
    @HOOKS.register_module(force=True)
    class NoteFiles(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append((batch_idx, *data_batch["data_samples"]))

    cfg = pretrain_config(shapes, **EVERY)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type="NoteFiles")]
    seen: list = []
    train(cfg, tmp_path / "whole")
    whole, seen = seen, []
    train(cfg, tmp_path / "rest", "--resume", str(tmp_path / "whole/iter_6.pth"))
    assert seen == whole[6:] and [entry[0] for entry in seen] == [2, 3, 0, 1, 2, 3]
    assert len({file for entry in whole[:4] for file in entry[1:]}) == 16  # an epoch sees every image once


def test_a_loss_that_is_not_finite_stops_before_the_step(shapes, whole, tmp_path, monkeypatch):
    loss, calls = ARMPretrainer.loss, []

    def broken(self, *args):
        calls.append(None)
        return loss(self, *args) * (float("nan") if len(calls) == 6 else 1.0)

    monkeypatch.setattr(ARMPretrainer, "loss", broken)
    cfg = pretrain_config(shapes, **EVERY)
    with pytest.raises(
        NotFinite, match=r"iteration 6: the loss is nan and .*; the batch of .*\.jpg.* --resume"
    ) as error:
        train(cfg, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run/iter_6.pth").exists()
    dumped = torch.load(tmp_path / "run/non_finite_batch_0.pth", weights_only=True)
    assert dumped["iteration"] == 6 and len(dumped["inputs"]) == len(dumped["files"]) == 4
    assert all(file in str(error.value) for file in dumped["files"])
    # the resumed run repeats iteration 6, now with a finite loss
    train(cfg, tmp_path / "run", "--resume")
    monkeypatch.setattr(ARMPretrainer, "loss", loss)
    assert_same(whole() / "iter_12.pth", tmp_path / "run/iter_12.pth")


def test_the_tool_says_it_in_one_line(shapes, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(ARMPretrainer, "loss", lambda self, *args: self.mask_token.sum() * float("inf"))
    pretrain_config(shapes, **EVERY).dump(tmp_path / "config.py")
    assert call_tool("train.py", tmp_path / "config.py", "--work-dir", tmp_path / "run") == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "error: iteration 1: the loss is" in errors[0]


def test_the_newest_checkpoint_is_found_without_a_note_of_it(tmp_path):
    """mmengine truncates `last_checkpoint` before writing it, so a killed run can leave it empty."""
    assert newest_checkpoint(tmp_path) is None
    for age, name in enumerate(("iter_9.pth", "iter_10.pth", "best_x.pth")):
        torch.save(dict(meta={}), tmp_path / name)
        os.utime(tmp_path / name, (age, age))
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_10.pth")
    (tmp_path / "last_checkpoint").write_text("")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_10.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "gone.pth"))
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_10.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_9.pth"))
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_9.pth")


@pytest.mark.slow
def test_killed_five_times_and_resumed(shapes, tmp_path):
    """After kill -9 at random moments, even while a checkpoint is written, the weights equal an uninterrupted run's."""
    options = EVERY | {"train_cfg.max_epochs": 10, "default_hooks.checkpoint.max_keep_ckpts": 2}
    cfg = pretrain_config(shapes, **options)
    cfg.dump(tmp_path / "config.py")
    # in its own process: another number of threads would round differently
    whole = run_tool("train.py", tmp_path / "config.py", "--work-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    work, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, str(ROOT / "tools/train.py"), str(tmp_path / "config.py"), "--work-dir", str(work)]
    draw, kills, resume = random.Random(0), 0, []
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(40):
        with log.open("w") as file:
            process = subprocess.Popen([*command, *resume], stdout=file, stderr=file, env=env)
            while kills < 5 and process.poll() is None and "Epoch(train)" not in log.read_text():
                time.sleep(0.01)
            if kills < 5 and process.poll() is None:
                time.sleep(draw.uniform(0, 0.4))  # iterations and checkpoints take a tenth of a second each
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
            status = process.wait()
        resume = ["--resume"] if list(work.glob("iter_*.pth")) else []
        if status == 0:
            break
        assert status == -signal.SIGKILL, log.read_text()[-2000:]
    assert status == 0 and kills == 5
    assert_same(tmp_path / "whole/iter_40.pth", work / "iter_40.pth")
    assert not list(work.glob("*.part"))
