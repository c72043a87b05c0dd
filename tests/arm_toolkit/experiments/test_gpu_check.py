"""tools/gpu_check.sh: its CPU form, and what it says about phases that cannot run, fail or take too long."""

import json
import os
from dataclasses import replace

import pytest

from arm_toolkit.engine.config import load_config
from arm_toolkit.errors import ConfigError
from arm_toolkit.experiments import gpu_check
from arm_toolkit.experiments.gpu_phases import FULL, SMALL, Phase, plan, resumed, trained
from tests.helpers.tools import run_tool


@pytest.mark.slow
def test_cpu_form_passes(tmp_path):
    """In the process that a user starts; without the installed package, as on a bare machine."""
    done = run_tool("gpu_check.sh", "--cpu", "--out", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("*/results.jsonl")
    results = {line["phase"]: line for line in map(json.loads, file.read_text().splitlines())}
    assert all(result["status"] == "passed" for result in results.values())
    trainings = {"mask_rcnn": SMALL.detector, "upernet": SMALL.segmentor, "classifier": SMALL.classifier}
    for name, training in trainings.items():
        result = results[f"{name}: training"]
        assert result["last_loss"] < result["first_loss"] and result["iterations"] == training.iterations
    assert results["mask_rcnn: test, float32"]["segm_mAP"] >= 0
    assert 0 < results["upernet: test, bfloat16"]["mIoU"] < 100
    assert results["pretraining"]["iterations"] == 2 * SMALL.pretraining.iterations
    compiled = results["pretraining: CUDA graphs"]
    assert compiled["last_loss"] == pytest.approx(results["pretraining"]["last_loss"], rel=1e-2)
    assert results["pretraining: resume"]["epoch"] == 3 and 0 < results["classifier: test, float32"]["top1"] <= 100
    assert results["kernels"]["passed"] > 100
    assert " images/s" in results["benchmark: models"]["inference of deit_tiny_patch16_224"]


def test_goes_on_after_what_cannot_run(tmp_path, monkeypatch, capsys):
    def phase(name: str, code: str, needs=("json",), seconds: int = 30, judge=lambda log: {}, after=()) -> Phase:
        return Phase(name, lambda: ["-c", code], {n: f"package-of-{n}" for n in needs}, seconds, judge, after)

    def wrong(log) -> dict:
        raise ConfigError("the loss did not fall")

    phases = [
        phase("bare", "", needs=("json", "no_such_module", "nor_this")),
        phase("later", "", after=("bare",)),
        phase("slow", "import time; time.sleep(60)", seconds=1),
        phase("broken", "print('begun'); raise SystemExit('error: no memory')"),
        phase("worse", "", judge=wrong),
        phase("good", "", judge=lambda log: dict(mIoU=1.5)),
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


def test_nothing_starts_when_the_time_is_over(tmp_path, monkeypatch):
    phase = Phase("late", lambda: ["-c", ""], {}, 30)
    monkeypatch.setattr(gpu_check, "plan", lambda out, sizes: [phase])
    assert not gpu_check.check(tmp_path, replace(FULL, seconds=5), dict(os.environ))
    assert json.loads((tmp_path / "results.jsonl").read_text())["reason"] == "5 s are over"


def write_log(work_dir, name: str, losses: list[float], epoch: int = 1) -> None:
    log = work_dir / name / "vis_data/scalars.json"
    log.parent.mkdir(parents=True)
    lines = [dict(loss=loss, time=0.5, epoch=epoch, memory=2048) for loss in losses]
    log.write_text("\n".join(map(json.dumps, lines)))


def test_losses_that_do_not_fall_are_a_failure(tmp_path):
    write_log(tmp_path, "20260101", [1.0] * 29 + [9.0])
    with pytest.raises(ConfigError, match="the loss did not fall in 30 iterations: .*'peak_GiB': 2.0"):
        trained(tmp_path, FULL.detector)


@pytest.mark.parametrize(("epoch", "losses"), [(1, [0.5] * 15), (3, [0.9] * 15), (3, [0.5] * 14)])
def test_a_run_that_starts_again_is_not_resumed(tmp_path, epoch, losses):
    write_log(tmp_path, "20260101", [1.0] * 15 + [0.6] * 15)
    write_log(tmp_path, "20260102", losses, epoch)
    with pytest.raises(ConfigError, match="the third epoch does not continue the second"):
        resumed(tmp_path, FULL.pretraining)


def test_full_form_trains_the_real_configurations_in_bfloat16(tmp_path):
    """What a GPU would run: ARM-B at its own sizes; read with the checks of tools/train.py."""
    plan(tmp_path, FULL)
    detector, segmentor, pretraining, classifier = (
        load_config(str(tmp_path / f"{name}.py")) for name in ("mask_rcnn", "upernet", "pretraining", "classifier")
    )
    for cfg in (detector, segmentor):
        assert cfg.model.backbone.arch == "base" and cfg.model.backbone.init_cfg is None
        assert cfg.optim_wrapper.type == "AmpOptimWrapper" and cfg.optim_wrapper.dtype == "bfloat16"
        assert cfg.train_dataloader.dataset.data_root.startswith(str(tmp_path))
        assert cfg.test_dataloader.dataset.data_root.startswith(str(tmp_path))
    assert segmentor.train_cfg.max_iters == FULL.segmentor.iterations
    assert (pretraining.model.arch, pretraining.model.img_size, pretraining.optim_wrapper.dtype) == (
        "base",
        192,
        "bfloat16",
    )
    assert (classifier.model.arch, classifier.model.img_size, classifier.model.init_cfg) == ("base", 224, None)
    assert classifier.optim_wrapper.dtype == "bfloat16"
    assert detector.model.roi_head.mask_head.num_classes == 3


def test_a_machine_without_a_gpu_is_one_line(tmp_path):
    done = run_tool("gpu_check.sh", "--out", tmp_path / "out", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "finds no GPU; --cpu checks small models" in done.stderr and not (tmp_path / "out").exists()
