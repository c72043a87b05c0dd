"""The page about a run that really trained and was tested: its figures are those that tools/test.py printed."""

import contextlib
import io
import json
import re

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.helpers.paths import ROOT
from tests.helpers.runs import det_config, seg_config, train
from tests.helpers.tools import invoke

pytestmark = pytest.mark.slow


def report(work) -> str:
    done = invoke("report.py", work)
    assert done.returncode == 0 and done.stdout.startswith(f"{work}/report.html: "), done.stdout + done.stderr
    return (work / "report.html").read_text()


def points(page: str, name: str, count: int) -> list[float]:
    """The first numbers in a run's row of the table of results."""
    cells = re.findall(r"<td>([^<]*)</td>", page.split(f"<td>{name}</td>")[1].split("</tr>")[0])
    return list(map(float, cells[:count]))


def run_test(work, config, out, *options) -> dict:
    """Test the last checkpoint and save the predictions; returns what was logged."""
    checkpoint = (work / "last_checkpoint").read_text()
    done = invoke("test.py", config, checkpoint, "--work-dir", work / "test", "--out", work / out, *options)
    assert done.returncode == 0, done.stderr
    return json.loads(max((work / "test").glob("*/*.json")).read_text())


def test_a_detector(shapes, tmp_path):
    cfg = det_config(shapes, validate=True, **{"train_cfg.val_interval": 1, "train_cfg.val_begin": 1})
    cfg.model.test_cfg.rcnn.score_thr = 0.0  # a detector that has learned nothing finds something all the same
    train(cfg, tmp_path / "det")
    logged = run_test(tmp_path / "det", next((tmp_path / "det").glob("*.py")), "predictions.json")
    truth = COCO(shapes / "coco/annotations/instances_val2017.json")
    page, found = report(tmp_path / "det"), json.loads((tmp_path / "det/predictions.json").read_text())
    aps = [100 * logged[f"coco/{kind}_mAP"] for kind in ("bbox", "segm")]
    assert found and points(page, "det", 2) == pytest.approx(aps, abs=0.11)
    for kind, unused in (("bbox", "segmentation"), ("segm", "bbox")):
        entries = [{key: value for key, value in entry.items() if key != unused} for entry in found]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, truth.loadRes(entries), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(logged[f"coco/{kind}_mAP"], abs=0.00051)


def test_a_segmentor(shapes, tmp_path):
    train(
        seg_config(shapes, validate=True, **{"train_cfg.val_interval": 4, "train_cfg.val_begin": 4}), tmp_path / "seg"
    )
    logged = run_test(tmp_path / "seg", next((tmp_path / "seg").glob("*.py")), "predictions")
    page = report(tmp_path / "seg")
    assert points(page, "seg", 2) == pytest.approx([logged["mIoU"], logged["aAcc"]], abs=0.11)
    assert "has finished after 8 of 8 steps" in page and "<strong>Validation.</strong>" in page


def test_a_classifier(shapes, tmp_path):
    assert invoke("prepare_data.py", "classes", shapes / "coco", tmp_path / "classes").returncode == 0
    config, work = ROOT / "cls_configs/quickstart_arm.py", tmp_path / "cls"
    options = ("--cfg-options", f"data_root={tmp_path / 'classes'}", "model.init_cfg=None", "model.arch.embed_dims=32")
    options += ("model.arch.num_layers=2",)
    assert invoke("train.py", config, "--work-dir", work, *options, "train_cfg.max_epochs=2").returncode == 0
    logged = run_test(work, config, "predictions.json", *options)
    saved = json.loads((work / "predictions.json").read_text())
    assert saved["classes"] == ["disc", "square", "triangle"] and len(saved["images"][0]["top"]) == 3
    page = report(work)
    assert points(page, "cls", 1) == pytest.approx([logged["accuracy/top1"]], abs=0.11)
    assert "has finished in epoch 2 of 2" in page and page.count("example") == 0 and page.count("<img ") >= 9
