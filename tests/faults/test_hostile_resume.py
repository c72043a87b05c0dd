"""Training checkpoints whose optimizer or log is not what this run needs: refused before the first step.

Schedules that are not what this run needs are not used.
"""

import copy
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend

from arm_backbone.checkpoint.files import CheckpointError
from arm_toolkit.engine.checkpoint_contents import check_optimizer, check_resumable
from arm_toolkit.engine.checkpoint_hook import _DeferredRemoval
from arm_toolkit.engine.runner import ARMRunner
from tests.helpers.runs import logged, pretrain_config, train


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory) -> tuple[Config, dict, ARMRunner]:
    """A configuration of two epochs, the checkpoint after the first, and the run."""
    cfg = pretrain_config(shapes)
    cfg.train_dataloader.update(batch_size=8, num_workers=0, persistent_workers=False)
    cfg.train_cfg.max_epochs, cfg.custom_hooks = 2, []
    cfg.default_hooks.checkpoint.interval = 1
    folder = tmp_path_factory.mktemp("run")
    runner = train(cfg, folder / "whole")
    return cfg, torch.load(folder / "whole/epoch_1.pth", weights_only=True), runner


CHANGES = {
    "optimizer.state.3.exp_avg": ([0], "not a tensor"),
    "optimizer.state.3.exp_avg_sq": (torch.zeros(2), "but the parameter has"),
    "optimizer.state.3.step": (-1, "not a number of steps"),
    "optimizer.state.4.step": (float("nan"), "NaN or infinite"),
    "optimizer.state.5": ([], "not a dict of dicts"),
    "optimizer.state": (None, "not a dict of dicts"),
    "optimizer.base_param_settings": (0, "not a dict"),
    "optimizer.param_groups.0.params.1": (0, "are not this run's"),
    "optimizer.param_groups.0.lr": (float("inf"), "not a number"),
    "optimizer.param_groups.0.betas": ([0.9], "1 entries for 2"),
    "optimizer.param_groups": ([], "0 entries"),
    "message_hub.log_scalars.train/loss": (1, "not a log of numbers"),
    "message_hub.log_scalars.train/loss.log_history": (["0"], "not a log of numbers"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_state_of_another_form_is_refused_by_its_key(key, run):
    _, checkpoint, runner = run
    checkpoint, (value, says) = copy.deepcopy(checkpoint), CHANGES[key]
    parent, *path = checkpoint, *key.split(".")
    *path, last = [int(part) if part.isdigit() else part for part in path]
    for part in path:
        parent = parent[part]
    parent[last] = value
    with pytest.raises(CheckpointError, match=says) as error:
        check_resumable(checkpoint, "FILE", 4, 2)
        check_optimizer(checkpoint, "FILE", runner.optim_wrapper)
    assert str(error.value).startswith(f"FILE: {'.'.join(key.split('.')[:2])}") and "\n" not in str(error.value)


def test_nothing_is_made_from_such_a_checkpoint(run, tmp_path):
    cfg, checkpoint, _ = run
    checkpoint = copy.deepcopy(checkpoint)
    checkpoint["optimizer"]["state"][3]["exp_avg"] = [0]
    torch.save(checkpoint, tmp_path / "changed.pth")
    with pytest.raises(CheckpointError, match=r"changed.pth: optimizer.state.3.exp_avg is \[0\]"):
        train(cfg, tmp_path / "resumed", "--resume", str(tmp_path / "changed.pth"))
    assert not (tmp_path / "resumed").exists()


SCHEDULES = {
    "text": "x",
    "numbers": [1, 2],
    "a dict": {"0": {}},
    "none": None,
    "a step that is text": dict(last_step="x"),
    "a value that is NaN": dict(_last_value=[math.nan]),
    "base values of another number": dict(base_values=[]),
    "a method in the state": dict(step=1, optimizer=None),
}


QUICK = ("text", "a step that is text", "a method in the state")


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what in QUICK else pytest.mark.slow) for what in SCHEDULES]
)
def test_schedules_of_another_form_are_not_used(what, run, tmp_path):
    """The rates are those of the configuration, and the log says so."""
    cfg, checkpoint, whole = run
    checkpoint, value = copy.deepcopy(checkpoint), SCHEDULES[what]
    if isinstance(value, dict) and "0" not in value:
        checkpoint["param_schedulers"][0].update(value)
    else:
        checkpoint["param_schedulers"] = value
    torch.save(checkpoint, tmp_path / "changed.pth")
    train(cfg, tmp_path / "rest", "--resume", str(tmp_path / "changed.pth"))
    assert "param_scheduler or the length of training is another one" in next(tmp_path.glob("rest/*/*.log")).read_text()
    folders = tmp_path / "rest", Path(whole.work_dir)
    rest, all_ = ({step: line["lr"] for step, line in logged(folder).items()} for folder in folders)
    assert rest and rest == {step: all_[step] for step in rest}


def test_flags_of_another_pytorch_do_not_hinder(run, tmp_path):
    cfg, checkpoint, _ = run
    checkpoint = copy.deepcopy(checkpoint)
    for group in checkpoint["optimizer"]["param_groups"]:
        del group["foreach"]
        group["new_flag"] = False
    torch.save(checkpoint, tmp_path / "other.pth")
    assert train(cfg, tmp_path / "resumed", "--resume", str(tmp_path / "other.pth")).epoch == 2


def test_resuming_removes_no_file_outside_the_work_dir(tmp_path):
    """mmengine removes the best checkpoint that the file names, once there is a better one."""
    (tmp_path / "work").mkdir()
    files = [tmp_path / "work/best.pth", tmp_path / "best.pth"]
    backend = _DeferredRemoval(LocalBackend(), tmp_path / "work")
    for file in files:
        file.touch()
        backend.remove(str(file))
    backend.remove_outdated(set())
    assert [file.exists() for file in files] == [False, True]
