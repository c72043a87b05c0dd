"""Training by a written configuration: the average of the weights, the best checkpoint and early stopping resume."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from arm_toolkit.engine.config import load_config
from arm_toolkit.engine.early_stop_hook import EarlyStopHook
from arm_toolkit.engine.new_config import new_config
from tests.helpers.runs import Stopped, train
from tests.helpers.small_models import narrow_detector, narrow_segmentor
from tests.helpers.trees import write_masks, write_yolo
from tests.helpers.weights import assert_same_weights

STEPS = 8


@pytest.fixture(scope="module")
def config(shapes, tmp_path_factory):
    """A function that gives a written configuration, narrowed, for 8 iterations with 4 evaluations."""
    folder = tmp_path_factory.mktemp("own")
    write_masks(shapes, folder / "labels", "colours")
    write_yolo(shapes, folder / "objects")
    for kind in ("labels", "objects"):
        new_config(folder / kind, folder / f"{kind}.py", model="arm_tiny")

    def make(kind: str = "labels", **hooks):
        cfg = load_config(str(folder / f"{kind}.py"))
        if kind == "labels":
            narrow_segmentor(cfg.model, size=64, width=16)
            cfg.train_dataloader.dataset.pipeline[4].crop_size = (64, 64)
        else:
            narrow_detector(cfg.model, width=32)
        cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
        cfg.val_dataloader.update(num_workers=0, persistent_workers=False)
        cfg.val_dataloader.dataset.indices = 2
        cfg.train_cfg.update(max_iters=STEPS, val_interval=2)
        cfg.param_scheduler.warmup = 2
        cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=-1)
        cfg.default_hooks.logger.interval = 1
        cfg.custom_hooks[0].decay = 0.6
        cfg.custom_hooks[1].update(hooks)
        return cfg

    return make


def state(folder: Path, step: int = STEPS) -> dict:
    return torch.load(folder / f"iter_{step}.pth", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("labels", "objects"))
def test_a_resumed_run_equals_the_uninterrupted_one(kind, config, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(kind), whole)
    interrupted = config(kind)
    interrupted.custom_hooks.append(dict(type="StopAt", iteration=6))
    with pytest.raises(Stopped):
        train(interrupted, parts)
    for best in parts.glob("best_*.pth"):  # as if the run had ended between the checkpoint and its evaluation
        if best.name.endswith("_4.pth"):
            best.unlink()
    train(config(kind), parts, "--resume")
    one, other = state(whole), state(parts)
    for key in ("state_dict", "ema_state_dict"):
        assert one[key].keys() == other[key].keys()
        assert all(torch.equal(one[key][name], other[key][name]) for name in one[key]), key
    assert not all(torch.equal(one["state_dict"][name], one["ema_state_dict"][f"module.{name}"])
                   for name in one["state_dict"])  # fmt: skip
    assert one["early_stop"] == other["early_stop"]
    bests = [path.name for path in whole.glob("best_*.pth")]
    assert bests or kind == "objects"  # so small a detector may detect nothing
    for name in bests:
        assert_same_weights(whole / name, parts / name, rtol=0, atol=0)


@pytest.mark.slow
def test_training_stops_early_and_says_so(config, tmp_path):
    runner = train(config(patience=1, min_delta=100.0), tmp_path / "run")
    assert runner.iter == 4  # the first evaluation sets the score, the second is not better by 100 points
    assert "did not improve" in next((tmp_path / "run").glob("*/*.log")).read_text()
    assert "eta:" in next((tmp_path / "run").glob("*/*.log")).read_text()


def test_scores_of_zero_do_not_stop_a_training():
    hook, loop = EarlyStopHook("coco/bbox_mAP", patience=2), SimpleNamespace(stop_training=False)
    runner = SimpleNamespace(train_loop=loop, logger=logging.getLogger("test"))
    for score in (0.0, 0.0, 0.0, 0.1, 0.2):
        hook.after_val_epoch(runner, {"coco/bbox_mAP": score})
    assert not loop.stop_training
    for score in (0.1, 0.1):
        hook.after_val_epoch(runner, {"coco/bbox_mAP": score})
    assert loop.stop_training
