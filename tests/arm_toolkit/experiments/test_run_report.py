"""The page about any runs: its numbers are those of the files, and what is missing or damaged is said.

The runs here are invented, on generated images; what is predicted is the truth, changed where a test needs mistakes.
"""

import fcntl
import json
import re
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arm_toolkit.experiments.run_report import run_names, write_report
from arm_toolkit.experiments.runs import inspect_run
from arm_toolkit.experiments.score_sections import judge
from tests.helpers.tools import invoke
from tests.helpers.work_dirs import make_run, predict_labels, predict_objects, write_log


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shapes) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    predict_labels(make_run(folder / "seg", "seg", shapes), shapes)
    predict_objects(make_run(folder / "det", "det", shapes), shapes)
    make_run(folder / "pretrain", "pretrain", shapes)
    return folder


@pytest.fixture(scope="module")
def page(runs) -> str:
    """Of three runs of different tasks."""
    assert write_report([runs / name for name in ("seg", "det", "pretrain")], runs / "page.html") == []
    return (runs / "page.html").read_text()


def rows(page: str, label: str) -> list[list[str]]:
    """The cells of the table rows that begin with a label, without their tags."""
    found = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)]
    found = [[re.sub("<.*?>", "", cell) for cell in cells] for cells in found]
    return [cells[1:] for cells in found if cells and cells[0] == label]


def section(page: str, title: str) -> str:
    return page.split(f"<h2>{title}</h2>")[1].split("<h2>")[0]


def test_the_results_of_a_segmentor(page, runs, shapes):
    truth, found = ([np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))] for folder in (
        shapes / "ade/annotations/validation", runs / "seg/predictions"))  # fmt: skip
    accuracy = 100 * np.mean(np.stack(truth) == np.stack(found))
    assert "<strong>seg</strong> (segmentation): has finished after 20 of 20 steps. It was resumed at step 20." in page
    (results,) = rows(page, "seg")
    assert results[-4:] == [f"{accuracy:.1f}", "mIoU 50.0, step 20", "12 s", "1.50 M"]
    classes = section(page, "Classes (segmentation)")
    ious = [float(rows(classes, name)[0][1]) for name in ("background", "disc", "square", "triangle")]
    assert float(results[-5]) == pytest.approx(np.mean(ious), abs=0.06) and ious[0] < 100
    worst = section(page, "Best and worst images (segmentation)").split("<strong>Best</strong>")[0]
    assert worst.index("val_000000.jpg") < worst.index("most frequent mistake: ") < worst.index("taken for background")
    assert section(page, "Curves (segmentation)").count("<img") == 3  # loss, validation, learning rate


def test_the_results_of_a_detector(page, runs):
    (results,) = rows(page, "det")
    assert results[:2] == ["100.0", "100.0"] and results[-3:] == ["box AP 50.0, step 20", "12 s", "1.50 M"]
    classes = section(page, "Classes (detection)")
    cells = [rows(classes, name)[0] for name in ("disc", "square", "triangle")]
    assert sum(int(row[0]) for row in cells) == len(json.loads((runs / "det/predictions.json").read_text()))
    assert {value for row in cells for value in row[1:]} == {"100.0"}
    assert "score of at least 0.90" in section(page, "Confusion matrix (detection)")
    assert section(page, "Precision and recall (detection)").count("<img") == 2


def test_what_pretraining_has_not_drawn_is_said(page):
    predicted = section(page, "What pretraining predicts (pretraining)")
    assert "tools/reconstruct.py" in predicted and predicted.count("<img") == 1  # loss by position


def test_the_page_needs_no_other_file_and_describes_its_images(page):
    sources = re.findall(r'\bsrc="([^"]*)"', page)
    assert len(sources) > 15 and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"\bhref=|url\(|@import|<script|<link|https?://", page)
    assert min(map(len, re.findall(r'alt="([^"]*)"', page))) > 15
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    assert len(page) < 4_000_000


def test_runs_side_by_side(runs, tmp_path, shapes):
    options = {"optim_wrapper.optimizer.lr": 0.5, "train_cfg.max_iters": 40}
    options["custom_hooks"] = [dict(type="EarlyStopHook", monitor="mIoU")]
    other = make_run(tmp_path / "<i>other<", "seg", shapes, **options)
    predict_labels(other, shapes)
    assert write_report([runs / "seg", other, runs / "seg"], tmp_path / "a.html") == []
    page = (tmp_path / "a.html").read_text()
    assert "ended after 20 of 40 steps; its EarlyStopHook may have ended it." in page and "<i>other" not in page
    assert rows(page, "optim_wrapper.optimizer.lr") == [["0.001", "0.5"]]
    assert rows(page, "seg")[0] == rows(page, "&lt;i&gt;other&lt;")[0]
    share, *values = rows(page, "background")[0]
    assert share.endswith("%") and len(values) == 4 and values[0] == values[1]


def test_missing_damaged_and_running_runs_are_sentences(tmp_path, shapes):
    (tmp_path / "empty").mkdir()
    write_log(tmp_path / "many" / "inner", "1", [dict(loss=1.0, step=1)])
    make_run(tmp_path / "seg", "seg", shapes)
    damaged = make_run(tmp_path / "det", "det", shapes)
    (damaged / "predictions.pkl").write_bytes(b"cos\nsystem\n")
    (damaged / "iter_20.pth").write_bytes(b"cut off")
    log = min(damaged.glob("*/vis_data/scalars.json"))
    log.write_text("\0{\n" + log.read_text() + '\n{"loss": 0.1, "st')
    hostile = make_run(tmp_path / "hostile", "seg", shapes)
    (hostile / "seg.py").write_text(f"model = open('{tmp_path}/executed', 'w')")
    running = make_run(tmp_path / "running", "seg", shapes, **{"train_cfg.max_iters": 100})
    out = tmp_path / "a.html"
    with open(running / "run.lock", "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # only other processes see it
        folders = [tmp_path / name for name in ("empty", "many", "seg", "det", "hostile", "running")]
        with get_context("fork").Pool(1) as pool:
            problems = pool.apply(write_report, (folders, out))
    page, said = out.read_text(), "\n".join(problems)
    assert page.count("there is no training log in") == 2 and "Its folders inner hold logs: give these." in page
    assert "is still training, after 20 of 100 steps" in page
    for part in (
        "det: " + str(log) + " has lines that cannot be read",
        f"det: {damaged}/iter_20.pth",
        "predictions.pkl is not read, because",
        f"hostile: {hostile}/seg.py: line 1 of its configuration",
        f"`python tools/test.py {tmp_path}/seg/seg.py {tmp_path}/seg/iter_20.pth --work-dir {tmp_path}/seg/test "
        f"--out {tmp_path}/seg/predictions`",
        f"det/test --out {damaged}/predictions.json`",
    ):
        assert part in said
    assert not (tmp_path / "executed").exists()


def faults(folder: Path) -> list[str]:
    return judge(inspect_run(folder, "run")).faults


def test_objects_that_do_not_fit_are_named(tmp_path, shapes):
    det = make_run(tmp_path / "det", "det", shapes)
    first = predict_objects(det, shapes)[0]
    for content, says in (
        ({}, "is not a list of results"),
        ([dict(image_id=1)], "entry 0 lacks one of the keys"),
        ([dict(first, image_id=77_777)], "has image_id 77777, which"),
        ([dict(first, category_id=9)], "has category_id 9, which"),
        ([dict(first, bbox=[1, 2])], "has no box of four numbers"),
        ([dict(first, score=float("nan"))], "has no box of four numbers"),
        ([dict(first, segmentation=dict(size=[9, 9], counts="1"))], "run lengths"),
        ([], "In 6 of 6 images nothing is found."),
    ):
        (det / "predictions.json").write_text(json.dumps(content))
        (problem,) = faults(det)
        assert says in problem
    assert judge(inspect_run(det, "det")).points("box AP") == 0


def test_label_maps_that_do_not_fit_are_named(tmp_path, shapes):
    names = {"test_dataloader.dataset.metainfo.classes": ("a<b>", "$x^$", "`", "\N{CJK UNIFIED IDEOGRAPH-6F22}")}
    seg = make_run(tmp_path / "seg", "seg", shapes, **names)
    predict_labels(seg, shapes)
    first, second, *_ = sorted((seg / "predictions").glob("*.png"))
    second.unlink()
    (problem,) = write_report([seg], tmp_path / "a.html")
    assert problem == "seg: 1 of 6 test images have no prediction and are left out."
    assert "a&lt;b&gt;" in (tmp_path / "a.html").read_text()
    for size, label, says in ((96, 9, "holds the label 8"), (9, 1, "holds 9x9 pixels")):
        Image.new("L", (size, size), label).save(first)
        (problem,) = faults(seg)
        assert f"{first} {says}" in problem


def test_values_of_wrong_kinds_are_sentences(tmp_path, shapes):
    folder = make_run(tmp_path / "weird", "det", shapes)
    predict_objects(folder, shapes)
    (folder / "predictions").mkdir()
    dataset = "test_dataloader = dict(dataset=dict"
    for text in (
        "default_scope = 'mmdet'\ntrain_cfg = 'long'\ntest_dataloader = 5",
        f"default_scope = 'mmdet'\n{dataset}(ann_file=7))",
        f"default_scope = 'mmseg'\n{dataset}(type='BaseSegDataset', data_root=[]))",
        f"default_scope = 'mmseg'\n{dataset}(type='os.system', a=1))\ntrain_cfg = dict(max_iters='x')",
        "default_scope = ['mmdet']\nmodel = 3",
    ):
        (folder / "det.py").write_text(text)
        assert len(faults(folder)) == (0 if "model" in text else 1)  # without test data it counts as pretraining
    values = (1.0, float("nan"), float("inf"), -1e300)
    write_log(folder, "20260103_000000", [dict(loss=value, lr=value, step=step) for step, value in enumerate(values)])
    assert write_report([folder], tmp_path / "a.html") == []


def test_the_tool_names_wrong_arguments(runs, tmp_path):
    out = ("--out", tmp_path / "a.html")
    for arguments, says in (
        ([tmp_path / "nothing"], "nothing does not exist; give the work dir of a run"),
        ([runs / "seg/seg.py", *out], "seg.py is a file; give the work dir of a run"),
        ([runs / "seg", runs / "det"], "give the page's name with --out FILE.html"),
        ([runs / "seg", "--out", tmp_path / "page.pdf"], "page.pdf: the page is HTML"),
    ):
        done = invoke("report.py", *arguments)
        assert done.returncode == 2 and says in done.stderr
    assert not list(tmp_path.iterdir())


def test_names_of_runs_are_as_short_as_can_be():
    assert run_names([Path("/a/b/c"), Path("/a/b/d")]) == ["c", "d"]
    assert run_names([Path("/a/b/c"), Path("/a/e/c")]) == ["b/c", "e/c"]
    assert run_names([Path("/x/b/c"), Path("/a/b/c"), Path("/a/b/d")]) == ["x/b/c", "a/b/c", "a/b/d"]
