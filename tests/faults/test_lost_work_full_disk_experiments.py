"""Evaluations, plans of commands and reports on a full disk: one error with the file, an earlier file as it was."""

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from arm_backbone.checkpoint.writing import WriteError
from arm_backbone.classifier import ARMClassifier
from arm_toolkit.experiments.comparison import Comparison
from arm_toolkit.experiments.report import write_quickstart_report
from arm_toolkit.experiments.steps import Step, finished_steps, run_steps
from arm_toolkit.experiments.studies import STUDIES
from tests.helpers.full_disk import fill, small_disk
from tests.helpers.paths import ROOT
from tests.helpers.small_models import ARCH
from tests.helpers.tools import invoke

pytestmark = pytest.mark.xdist_group("full disk")


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def files(disk: Path) -> list[str]:
    return sorted(file.name for file in disk.rglob("*") if file.is_file() and file.name != "filler")


def comparison(tmp_path: Path, disk: Path) -> Comparison:
    for name in ("a_1", "b_1"):
        path = tmp_path / f"camvid/images/training/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "camvid/meta.json").write_text('{"classes": ["sky", "road"]}')
    (tmp_path / "list.txt").write_text("camvid/images/training/a_1.jpg\n")
    study = STUDIES["paradigms"]
    return Comparison(study, disk / "out", tmp_path / "list.txt", tmp_path, tmp_path / "camvid", "b_")


@pytest.mark.parametrize("code", ["print('x' * 10000)", "pass"], ids=["its log", "its record"])
def test_a_step_that_cannot_be_recorded(code, disk):
    """A step whose output finds no space fails with nothing in its log; the error still says why."""
    fill(disk)
    with pytest.raises(WriteError, match="No space left on device"):
        run_steps([Step("step", ("-c", code))], disk)
    assert finished_steps(disk) == {}
    (disk / "filler").unlink()
    assert run_steps([Step("step", ("-c", code))], disk).keys() == {"step"}


def test_the_results_of_a_comparison(disk, tmp_path):
    compared = comparison(tmp_path, disk)
    table = compared.write_results({})
    before = {name: (disk / "out" / name).read_bytes() for name in files(disk)}
    fill(disk)
    with pytest.raises(WriteError, match="results.json cannot be written .No space left on device"):
        compared.write_results({})
    assert {name: (disk / "out" / name).read_bytes() for name in files(disk)} == before and table.name in before


def test_the_lists_of_a_comparison(disk, tmp_path):
    fill(disk)
    with pytest.raises(WriteError, match="photographs.txt cannot be written .No space left on device"):
        comparison(tmp_path, disk).write_lists()
    assert files(disk) == []


def test_the_quickstarts_report(disk):
    page = write_quickstart_report(disk)
    before = page.read_bytes()
    fill(disk)
    with pytest.raises(WriteError, match="report.* cannot be written .No space left on device"):
        write_quickstart_report(disk)
    assert page.read_bytes() == before and not list(disk.rglob("*.part"))


def test_robustness(disk, tmp_path):
    model, weights, out = "arm_tiny_patch16_224", tmp_path / "classifier.pth", disk / "table.json"
    torch.save(timm.create_model(model).state_dict(), weights)
    image = tmp_path / "data/imagenetv2-matched-frequency-format-val/7/a.png"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(image)
    out.write_bytes(b"earlier")
    fill(disk)
    done = invoke("robustness.py", weights, "--model", model, "--data", tmp_path / "data", "--workers", 0, "--out", out)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and f"{out} cannot be written (No space left" in lines[0], (
        done.stderr
    )
    assert "| ImageNet-V2" in done.stdout  # the result is not lost
    assert out.read_bytes() == b"earlier" and files(disk) == ["table.json"]


def test_k_nearest_neighbours_write_nothing(disk, shapes, tmp_path):
    done = invoke("prepare_data.py", "classes", shapes / "coco", tmp_path / "classes")
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "weights.pth"
    torch.save(ARMClassifier(ARCH, img_size=64, num_classes=3).state_dict(), weights)
    fill(disk)
    config = ROOT / "cls_configs/quickstart_arm.py"
    options = [f"data_root={tmp_path / 'classes'}", f"model.arch={ARCH}", "train_dataloader.num_workers=0"]
    options += ["test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False"]
    done = invoke("knn.py", config, weights, "--k", 1, "--cfg-options", *options, cwd=disk)
    assert done.returncode == 0 and "top-1" in done.stdout, done.stderr
    assert files(disk) == []
