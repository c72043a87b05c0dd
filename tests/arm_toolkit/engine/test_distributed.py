"""Several processes, started by the launch scripts, give the same gradients and metrics as one process."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from arm_toolkit.datasets.shapes import write_shapes
from arm_toolkit.engine.launch import build_runner
from arm_toolkit.machine import multiply_with_onednn
from tests.helpers.paths import ROOT
from tests.helpers.runs import det_config, pretrain_config, seg_config, train
from tests.helpers.tools import call_tool, own_globals, run_tool


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """Shapes with five validation images, so that two processes get unequal shares."""
    folder = tmp_path_factory.mktemp("data") / "odd"
    write_shapes(folder, train=16, val=5, size=96)
    return folder


def gradient_config(kind: str, shapes: Path) -> Config:
    """A run of one iteration, with a deterministic model whose norms do not depend on the batch."""
    options = {"custom_hooks": [dict(type="DumpGradients", path="")]}
    if kind == "pretrain":
        cfg = pretrain_config(shapes, **options)
        cfg.optim_wrapper.clip_grad = None
        cfg.train_cfg.max_epochs, cfg.param_scheduler.warmup = 1, 0
        cfg.train_dataloader.num_batch_per_epoch = 1
        return cfg
    cfg = seg_config(shapes, **options)
    cfg.model.backbone.drop_path_rate = 0.0
    cfg.model.neck.norm_cfg = dict(type="GN", num_groups=4)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.update(norm_cfg=dict(type="GN", num_groups=4), dropout_ratio=0.0)
    cfg.train_cfg.max_iters = 1
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["seg", "pretrain"])
def test_two_processes_give_the_mean_gradient_of_their_halves(kind, shapes, tmp_path):
    cfg = gradient_config(kind, shapes)
    cfg.custom_hooks[0].path = str(tmp_path / "start.pth")
    cfg.custom_imports.imports.append("tests.helpers.runs")
    cfg.train_dataloader.batch_size = 2
    cfg.dump(tmp_path / "config.py")
    env = dict(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    arguments = ("config.py", 2, "--work-dir", "two")
    result = run_tool("dist_train.sh", *arguments, env=env, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    dumped = torch.load(tmp_path / "start.pth", weights_only=True)

    cfg.train_dataloader.batch_size = 4
    cfg.update(work_dir=str(tmp_path / "one"), launcher="none", custom_hooks=None)
    cfg.optim_wrapper.type = "OptimWrapper"
    with own_globals():
        runner = build_runner(cfg)
        (batch,) = [batch for batch, _ in zip(runner.build_dataloader(cfg.train_dataloader, seed=0), range(1))]
    runner.model.load_state_dict(dumped["weights"])
    runner.model.train()
    multiply_with_onednn()  # as the two processes do
    halves = [{key: values[rank::2] for key, values in batch.items()} for rank in (0, 1)]
    gradients = {name: 0.0 for name, weight in runner.model.named_parameters() if weight.requires_grad}
    assert gradients.keys() == dumped["gradients"].keys()
    norms = []
    for half in halves:
        assert len(half["inputs"]) == 2
        runner.model.zero_grad()
        losses = runner.model(**runner.model.data_preprocessor(half, True), mode="loss")
        runner.model.parse_losses(losses)[0].backward()
        for name in gradients:
            gradients[name] = gradients[name] + runner.model.get_parameter(name).grad / 2
        norms.append(runner.model.get_parameter(name).grad.norm())
    assert abs(norms[0] - norms[1]) > 1e-3 * norms[0]  # the halves differ
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, expected in gradients.items():
        # tiny gradients are rounding errors: their differences are judged relative to 1e-3 of the largest gradient
        scale = max(expected.abs().max(), 1e-3 * largest)
        assert (dumped["gradients"][name] - expected).abs().max() <= 1e-6 * scale, name


def metrics(work_dir: Path) -> dict[str, float]:
    """The metrics that an evaluation logged in its work dir, without times."""
    (file,) = work_dir.glob("*/2*.json")
    return {key: value for key, value in json.loads(file.read_text()).items() if "time" not in key}


@pytest.mark.slow
def test_segmentor_trained_and_evaluated_by_two_processes(odd, tmp_path):
    """For five images, two processes report the same mIoU as one process and save label maps that agree."""
    config = ROOT / "seg_configs/quickstart_upernet.py"
    options = f"""data_root={odd}/ade/ model.data_preprocessor.size=(96,96) model.backbone.img_size=96
        model.backbone.arch.embed_dims=32 model.backbone.arch.num_layers=4 model.backbone.init_cfg=None
        model.neck.in_channels=32 model.decode_head.in_channels=[32,32,32,32] model.decode_head.channels=16
        model.auxiliary_head.in_channels=32 model.auxiliary_head.channels=16 train_dataloader.batch_size=4
        train_dataloader.dataset.indices=None
        train_dataloader.dataset.pipeline.3.scale=(96,96) optim_wrapper.optimizer.lr=0.01
        train_dataloader.dataset.pipeline.4.crop_size=(96,96) train_cfg.max_iters=12 train_cfg.val_interval=12
        train_cfg.val_begin=1 param_scheduler.0.end=2 default_hooks.logger.interval=1"""
    options = ("--cfg-options", *options.split())
    result = run_tool("dist_train.sh", config, 2, "--work-dir", tmp_path / "train", *options)
    assert result.returncode == 0, result.stderr
    assert "No GPU found: starting 2 CPU processes that communicate over gloo." in result.stdout
    assert "2 processes over gloo" in result.stdout + result.stderr
    (file,) = (tmp_path / "train").glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 12 and losses[-1] < losses[0]
    validated = lines[-1]["mIoU"]

    checkpoint = tmp_path / "train/iter_12.pth"
    arguments = (config, checkpoint, 2, "--work-dir", tmp_path / "two", "--out", tmp_path / "maps2", *options)
    result = run_tool("dist_test.sh", *arguments)
    assert result.returncode == 0, result.stderr
    arguments = (config, checkpoint, "--work-dir", tmp_path / "one", "--out", tmp_path / "maps1", *options)
    assert call_tool("test.py", *arguments) == 0

    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert one == two and 1 < one["mIoU"] < 99
    assert validated == one["mIoU"]  # it used the first process's BN statistics, which the checkpoint holds
    maps = [{file.name: np.array(Image.open(file)) for file in (tmp_path / f"maps{n}").iterdir()} for n in (1, 2)]
    assert len(maps[0]) == 5 and maps[0].keys() == maps[1].keys()
    for name in maps[0]:
        assert (maps[0][name] == maps[1][name]).mean() > 0.999


@pytest.mark.slow
def test_detector_evaluated_by_two_processes(odd, tmp_path):
    options = {
        "train_cfg.max_epochs": 8,
        "param_scheduler.1.end": 8,
        "default_hooks.checkpoint.interval": 8,
        "train_dataloader.batch_size": 4,
        "model.backbone.drop_path_rate": 0.0,
        "model.test_cfg.rcnn": dict(score_thr=0.0, max_per_img=100),
    }
    cfg = det_config(odd, **options)
    train(cfg, tmp_path / "train")
    config, checkpoint = tmp_path / "config.py", tmp_path / "train/epoch_8.pth"
    det_config(odd, validate=True, **options).dump(config)
    arguments = ("--work-dir", tmp_path / "two", "--out", tmp_path / "two.pkl")
    result = run_tool("dist_test.sh", config, checkpoint, 2, *arguments)
    assert result.returncode == 0, result.stderr
    arguments = ("--work-dir", tmp_path / "one", "--out", tmp_path / "one.pkl")
    assert call_tool("test.py", config, checkpoint, *arguments) == 0

    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert one == pytest.approx(two, abs=1e-3)  # CocoMetric rounds to three decimals
    assert one["coco/bbox_mAP"] > 0 and one["coco/segm_mAP"] > 0
    one, two = (pickle.loads((tmp_path / f"{name}.pkl").read_bytes()) for name in ("one", "two"))
    assert [image["img_id"] for image in one] == [image["img_id"] for image in two]
    assert len(one) == 5
    for first, second in zip(one, two):
        assert len(first["pred_instances"]["scores"]) > 10
        first, second = first["pred_instances"], second["pred_instances"]
        for key in ("scores", "bboxes", "labels"):
            torch.testing.assert_close(first[key], second[key], rtol=1e-4, atol=1e-3)


@pytest.fixture
def stub(tmp_path):
    """A stand-in for Python that reports FAKE_GPUS GPUs and prints its arguments instead of training."""
    path = tmp_path / "bin/python"
    path.parent.mkdir()
    path.write_text('#!/bin/sh\nif [ "$1" = -c ]; then echo "$FAKE_GPUS"; else echo "called: $*"; fi\n')
    path.chmod(0o755)

    def run(script, *arguments, gpus: int = 0, **env):
        return run_tool(script, *arguments, env=dict(PYTHON=str(path), FAKE_GPUS=str(gpus), **env))

    return run


@pytest.mark.parametrize(("script", "inputs"), [("dist_train.sh", 1), ("dist_test.sh", 2)])
def test_scripts_explain_themselves(stub, script, inputs):
    arguments = ["a.py", "b.pth"][:inputs]
    for wrong in ([], arguments, ["--help"]):
        result = stub(script, *wrong)
        assert result.returncode == (0 if wrong == ["--help"] else 2)
        assert f"tools/{script} CONFIG" in result.stdout and "Example" in result.stdout
        assert "called" not in result.stdout


@pytest.mark.parametrize("number", ["0", "two", "-1", "1.5", "--resume"])
def test_number_of_gpus_is_a_number(stub, number):
    result = stub("dist_train.sh", "a.py", number)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: the number of GPUs") and f"not '{number}'" in result.stderr


def test_more_gpus_than_there_are_is_an_error(stub):
    result = stub("dist_train.sh", "a.py", 4, gpus=2)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: 4 GPUs requested, but this machine has 2; give at most 2\n"
    result = stub("dist_train.sh", "a.py", 2, "--amp", gpus=2)
    assert result.returncode == 0 and "gloo" not in result.stdout
    assert "--nproc_per_node=2" in result.stdout
    assert result.stdout.endswith(f"{ROOT}/tools/train.py a.py --launcher pytorch --amp\n")


def test_without_a_gpu_it_says_gloo_and_warns_above_the_cores(stub):
    cores = len(os.sched_getaffinity(0))
    result = stub("dist_test.sh", "a.py", "b.pth", cores)
    assert result.returncode == 0 and result.stderr == ""
    assert f"No GPU found: starting {cores} CPU processes that communicate over gloo.\n" in result.stdout
    assert result.stdout.endswith(f"{ROOT}/tools/test.py a.py b.pth --launcher pytorch\n")
    result = stub("dist_train.sh", "a.py", cores + 1)
    assert result.returncode == 0
    assert result.stderr == f"warning: {cores + 1} processes on {cores} cores will slow each other down\n"


def test_several_machines(stub):
    result = stub("dist_train.sh", "a.py", 8, gpus=8, NNODES="2", NODE_RANK="1", MASTER_ADDR="host0", PORT="1234")
    assert "--nnodes=2 --node_rank=1 --master_addr=host0 --master_port=1234 --nproc_per_node=8" in result.stdout
    result = stub("dist_train.sh", "a.py", 8, gpus=8, NNODES="2")
    assert result.returncode != 0 and "MASTER_ADDR" in result.stderr and "called" not in result.stdout


def test_slurm_scripts_start_the_tool_through_srun(tmp_path):
    """A stand-in for srun prints its arguments."""
    shutil.copy("/bin/echo", tmp_path / "srun")
    env = dict(PATH=f"{tmp_path}:{os.environ['PATH']}", PYTHON="python", GPUS="4", SRUN_ARGS="--qos=high")
    result = run_tool("slurm_train.sh", "gpu", "job", "a.py", "--resume", env=env)
    assert result.returncode == 0, result.stderr
    for part in ("--partition=gpu --job-name=job --gres=gpu:4 --ntasks=4 --ntasks-per-node=4", "--qos=high"):
        assert part in result.stdout
    assert result.stdout.endswith(f"{ROOT}/tools/train.py a.py --resume --launcher=slurm\n")
    result = run_tool("slurm_test.sh", "gpu", "job")
    assert result.returncode == 2 and "slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT" in result.stdout
    result = run_tool("slurm_train.sh", "gpu", "job", "a.py", env=dict(PATH="/usr/bin:/bin"))
    assert result.returncode == 2 and result.stderr.startswith("error: srun is not installed here")
