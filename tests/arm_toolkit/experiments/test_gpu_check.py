"""tools/gpu_check.sh: its CPU form, and what it says about phases that cannot run, fail or take too long."""

import json
import os

import pytest

from arm_toolkit.engine.config import load_config
from arm_toolkit.errors import ConfigError
from arm_toolkit.experiments import gpu_check
from arm_toolkit.experiments.gpu_check import FULL, Phase
from tests.helpers.tools import run_tool


@pytest.mark.slow
def test_cpu_form_passes(tmp_path):
    """In the process that a user starts; without the installed package, as on a bare machine."""
    done = run_tool("gpu_check.sh", "--cpu", "--out", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("*/results.jsonl")
    results = {line["phase"]: line for line in map(json.loads, file.read_text().splitlines())}
    assert all(result["status"] == "passed" for result in results.values())
    for name in ("mask_rcnn", "upernet"):
        training = results[f"{name}: training"]
        assert training["last_loss"] < training["first_loss"] and training["iterations"] == gpu_check.SMALL.iterations
    assert results["mask_rcnn: test"]["segm_mAP"] >= 0 and 0 < results["upernet: test"]["mIoU"] < 100


def test_goes_on_after_what_cannot_run(tmp_path, monkeypatch, capsys):
    def phase(name: str, code: str, needs=("json",), seconds: int = 30, judge=dict, after=()) -> Phase:
        return Phase(name, lambda: ["-c", code], {n: f"package-of-{n}" for n in needs}, seconds, judge, after)

    def wrong() -> dict:
        raise ConfigError("the loss did not fall")

    phases = [
        phase("bare", "", needs=("json", "no_such_module", "nor_this")),
        phase("later", "", after=("bare",)),
        phase("slow", "import time; time.sleep(60)", seconds=1),
        phase("broken", "print('begun'); raise SystemExit('error: no memory')"),
        phase("worse", "", judge=wrong),
        phase("good", "", judge=lambda: dict(mIoU=1.5)),
    ]
    monkeypatch.setattr(gpu_check, "plan", lambda out, sizes: phases)
    assert not gpu_check.check(tmp_path, FULL, dict(os.environ))
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [r["status"] for r in results] == ["not run", "not run", "failed", "failed", "failed", "passed"]
    reasons = [r.get("reason", "") for r in results]
    assert "no_such_module (pip install package-of-no_such_module), nor_this (pip" in reasons[0]
    assert reasons[1] == "needs: bare" and reasons[2].startswith("not finished after 1 s (see ")
    assert reasons[3].startswith("error: no memory (see ") and reasons[4].startswith("the loss did not fall")
    assert results[5]["mIoU"] == 1.5
    assert capsys.readouterr().out.splitlines()[-1].startswith("good ")


def test_losses_that_do_not_fall_are_a_failure(tmp_path):
    log = tmp_path / "20260101/vis_data/scalars.json"
    log.parent.mkdir(parents=True)
    lines = [dict(loss=1.0 if i < 29 else 9.0, time=0.5, iter=i, memory=2048) for i in range(FULL.iterations)]
    log.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ConfigError, match="the loss did not fall in 30 iterations: .*'peak_GiB': 2.0"):
        gpu_check._trained(tmp_path, FULL)


def test_full_form_trains_the_real_configurations_in_bfloat16(tmp_path):
    """What a GPU would run: ARM-B at its own sizes; read with the checks of tools/train.py."""
    gpu_check.plan(tmp_path, FULL)
    detector, segmentor = (load_config(str(tmp_path / f"{name}.py")) for name in ("mask_rcnn", "upernet"))
    for cfg in (detector, segmentor):
        assert cfg.model.backbone.arch == "base" and cfg.model.backbone.init_cfg is None
        assert cfg.optim_wrapper.type == "AmpOptimWrapper" and cfg.optim_wrapper.dtype == "bfloat16"
        assert cfg.train_dataloader.dataset.data_root.startswith(str(tmp_path))
        assert cfg.test_dataloader.dataset.data_root.startswith(str(tmp_path))
    assert segmentor.train_cfg.max_iters == FULL.iterations
    assert detector.model.roi_head.mask_head.num_classes == 3


def test_a_machine_without_a_gpu_is_one_line(tmp_path):
    done = run_tool("gpu_check.sh", "--out", tmp_path / "out", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "finds no GPU; --cpu checks small models" in done.stderr and not (tmp_path / "out").exists()
