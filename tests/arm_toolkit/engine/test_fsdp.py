"""Fully sharded pretraining in two gloo processes equals DDP, and its checkpoints hold whole tensors."""

import re

import pytest
import torch

from arm_toolkit.engine.fsdp import require_shardable
from arm_toolkit.errors import ConfigError
from tests.helpers.runs import logged, mae_config, pretrain_config, train
from tests.helpers.tools import run_tool
from tests.helpers.weights import assert_same_weights

SHARDED = dict(model_wrapper_cfg=dict(type="fully_shard"))


def two_processes(cfg, work_dir, *arguments) -> str:
    """Train in two processes and return what the tool printed."""
    cfg.train_dataloader.batch_size = 2
    config = work_dir.with_suffix(".py")
    cfg.dump(config)
    result = run_tool("dist_train.sh", config, 2, "--work-dir", work_dir, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_sharded_training_equals_ddp(shapes, tmp_path):
    clip = {"optim_wrapper.clip_grad": dict(max_norm=0.05), "train_cfg.max_epochs": 2}  # clips every step
    two_processes(pretrain_config(shapes, **clip), tmp_path / "ddp")
    output = two_processes(pretrain_config(shapes, **clip, **SHARDED), tmp_path / "sharded")
    here, everything = re.search(r"Sharded over 2 processes: ([\d,]+) of ([\d,]+) weights", output).groups()
    share = int(here.replace(",", "")) / int(everything.replace(",", ""))
    assert 0.45 < share < 0.55
    ddp, sharded = logged(tmp_path / "ddp"), logged(tmp_path / "sharded")
    assert sorted(ddp) == sorted(sharded) == list(range(1, 9))
    for step in ddp:
        assert ddp[step]["grad_norm"] > 0.05
        for key in ("loss", "grad_norm"):
            assert sharded[step][key] == pytest.approx(ddp[step][key], rel=1e-4), (step, key)
    assert_same_weights(tmp_path / "ddp/epoch_2.pth", tmp_path / "sharded/epoch_2.pth", rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_sharded_mae_equals_ddp(shapes, tmp_path):
    """With the figures of ReconstructionHook, which computes outside of `forward`."""
    short = {"train_cfg.max_epochs": 1, "param_scheduler.warmup": 0}
    for name, options in (("ddp", {}), ("sharded", SHARDED)):
        two_processes(mae_config(shapes, **short, **options), tmp_path / name)
    ddp, sharded = logged(tmp_path / "ddp"), logged(tmp_path / "sharded")
    assert sorted(ddp) == sorted(sharded) == list(range(1, 5))
    for step in ddp:
        assert sharded[step]["loss"] == pytest.approx(ddp[step]["loss"], rel=1e-4), step
    assert_same_weights(tmp_path / "ddp/epoch_1.pth", tmp_path / "sharded/epoch_1.pth", rtol=1e-3, atol=1e-4)
    assert list((tmp_path / "sharded").glob("*/vis_data/vis_image/reconstruction_*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [SHARDED, {}], ids=["sharded", "ddp"])
def test_resumes_in_the_middle_of_a_sum_of_gradients(options, shapes, tmp_path):
    """With 4 batches per epoch and 3 per step, the checkpoint of the first epoch keeps the gradients of both processes.

    Drawing a reconstruction just before the checkpoint must not lose them.
    """
    every = {
        "default_hooks.checkpoint.interval": 1,
        "optim_wrapper.accumulative_counts": 3,
        "train_cfg.max_epochs": 2,
    }
    cfg = pretrain_config(shapes, **every, **options)
    assert cfg.custom_hooks[1].type == "ReconstructionHook"
    cfg.custom_hooks[1].interval = 1
    two_processes(cfg, tmp_path / "whole")
    checkpoint = torch.load(tmp_path / "whole/epoch_1.pth", weights_only=True)
    trained = {name for name in checkpoint["state_dict"] if name not in ("encoder.pos_embed", "decoder_pos_embed")}
    assert checkpoint["accumulated_gradients"].keys() == trained and checkpoint["optimizer"]["state"]
    tensors = [
        checkpoint["state_dict"],
        checkpoint["accumulated_gradients"],
        *checkpoint["optimizer"]["state"].values(),
    ]
    assert all(type(value) is torch.Tensor for part in tensors for value in part.values())
    start = ("--resume", tmp_path / "whole/epoch_1.pth")
    two_processes(cfg, tmp_path / "rest", *start)
    assert_same_weights(tmp_path / "whole/epoch_2.pth", tmp_path / "rest/epoch_2.pth", rtol=1e-4, atol=1e-5)
    one = train(pretrain_config(shapes, **every), tmp_path / "one", *map(str, start))  # one process can load them
    assert one.iter == 8


def test_other_models_are_refused():
    with pytest.raises(ConfigError, match="model_wrapper_cfg.type=fully_shard with model.type=Linear"):
        require_shardable(torch.nn.Linear(2, 2))
