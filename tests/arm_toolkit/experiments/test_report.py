"""The quickstart's report shows the numbers of the files, needs no other file, and copes with missing runs.

All runs here are tiny and invented: the tests check only how the report reads them.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

import arm_pretrain  # noqa: F401 registers ARMPretrainer
from arm_images.errors import DataError
from arm_toolkit.experiments import report as report_module
from arm_toolkit.experiments.charts import smooth
from arm_toolkit.experiments.files import read_json
from arm_toolkit.experiments.generated import settings
from arm_toolkit.experiments.generated_comparison import LEAST, RECORDED, STARTS
from arm_toolkit.experiments.overview import write_overview
from arm_toolkit.experiments.reconstruction import reconstruct
from arm_toolkit.experiments.report import ROWS, duration, write_quickstart_report
from arm_toolkit.experiments.runs import Run, checkpoint_path, read_losses
from arm_toolkit.experiments.segmentation_scores import class_iou

SCORES = {
    "det": {"coco/bbox_mAP": 0.4117, "coco/segm_mAP": 0.3, "coco/bbox_mAP_50": 0.99},
    "seg": {"mIoU": 61.25, "aAcc": 99.0},
}


def make_run(folder: Path, steps: int = 20, state: dict | None = None) -> None:
    """Write the log and checkpoint of a training, and its test results if `SCORES` has them."""
    log = folder / "20260101_000000" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    lines = [{"loss": 2 - step / steps, "lr": 0.1, "step": step} for step in range(10, steps + 1, 10)]
    log.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"mIoU": 1.0, "step": steps}]))
    state = state or {"backbone.a": torch.zeros(3, 500_000), "head.b": torch.zeros(250_000)}
    torch.save({"state_dict": state, "meta": {}}, folder / "iter_9.pth")
    (folder / "last_checkpoint").write_text("elsewhere/iter_9.pth")  # as if the folder had been moved
    if folder.name in SCORES:
        results = folder / "test" / "20260101_000001" / "20260101_000001.json"
        results.parent.mkdir(parents=True)
        results.write_text(json.dumps(SCORES[folder.name]))


def make_pretraining(folder: Path) -> None:
    model = dict(
        type="ARMPretrainer",
        arch=dict(embed_dims=32, num_layers=2),
        img_size=96,
        cluster_side=3,
        decoder_dim=64,
        decoder_depth=1,
        data_preprocessor=dict(type="ImgDataPreprocessor", mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0]),
    )
    torch.manual_seed(0)
    make_run(folder, state=MODELS.build(model).state_dict())
    cfg = Config(dict(default_scope="mmengine", model=model, train_dataloader=dict(dataset=dict(size=96))))
    cfg.dump(folder / "tiny.py")


def make_detections(path: Path, shapes: Path) -> None:
    """Write predictions that find every true object with a score of 0.9, and once more below the threshold."""
    truth = json.loads((shapes / "coco/annotations/instances_val2017.json").read_text())
    keys = ("image_id", "category_id", "bbox", "segmentation")
    found = [dict(score=score) | {k: a[k] for k in keys} for a in truth["annotations"] for score in (0.9, 0.2)]
    path.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shapes) -> Path:
    """A complete quickstart."""
    folder = tmp_path_factory.mktemp("quickstart")
    shutil.copytree(shapes, folder / "shapes")
    make_pretraining(folder / "pretrain")
    for name in SCORES:
        make_run(folder / name)
        if name == "det":
            make_detections(folder / name / "predictions.json", shapes)
        else:
            shutil.copytree(shapes / "ade/annotations/validation", folder / name / "predictions")
        drawn = folder / "predicted" / name / "drawn"
        drawn.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(drawn / "a.jpg")
    steps = [dict(name="pretrain", seconds=125.0, command="python tools/pretrain.py 'a<b' @pretrain")]
    steps += [dict(name=name, seconds=60.0 + i, command="python tools/train.py") for i, name in enumerate(SCORES)]
    record = dict(steps=steps, total_seconds=3700.0, machine="Test & Sons CPU", versions=dict(torch="9.9"))
    (folder / "steps.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def report(folder) -> tuple[str, str]:
    """HTML and Markdown of the complete quickstart."""
    path = write_quickstart_report(folder)
    return path.read_text(), path.with_suffix(".md").read_text()


def table_row(markdown: str, label: str) -> list[str]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    return next(cells[1:] for cells in rows if cells[0] == label)


def test_the_table_holds_the_numbers_of_the_files(report):
    assert table_row(report[1], "this run") == ["41.2", "30.0", "61.2", "–"]


def test_the_recorded_seeds_stand_beside_this_run(report):
    """Mean and range of each measure; the report itself judges nothing."""
    record = json.loads(RECORDED.read_text())
    for row, start in zip(ROWS[1:], STARTS):
        points = [cell["box AP"] for cell in record["results"][start]]
        expected = f"{sum(points) / len(points):.1f} ({min(points):.1f} to {max(points):.1f})"
        assert table_row(report[1], row)[0] == expected
    assert f"{len(record['seeds'])} seeds on {record['machine']}" in report[1]
    assert not re.search("helped|hurt|noise|verdict", report[1])


def test_the_record_is_of_the_present_configurations():
    """If this fails: run `tools/compare_pretraining.py --generated`, and copy its results.json and table.md."""
    record = json.loads(RECORDED.read_text())
    assert record["settings"] == settings()
    assert all(cell[LEAST] > 30 for cells in record["results"].values() for cell in cells), "a class was not learned"


def test_a_record_of_other_configurations_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "settings", lambda: "others")
    text = write_quickstart_report(tmp_path).with_suffix(".md").read_text()
    assert "recorded, " not in text and "they are of other configurations" in text


def test_the_summary_names_machine_data_and_time(report):
    summary = report[1].split("## Results")[0]
    for part in ("Test & Sons CPU", "16 training and 6 validation images of 96 × 96", "took 1 h 1 min", "32 channels"):
        assert part in summary
    assert "Mask R-CNN (20 steps, 1.8 M parameters, 1 min 0 s) and UperNet (20 steps" in summary


def test_html_needs_no_other_file(report):
    page = report[0]
    sources = re.findall(r'\bsrc="([^"]*)"', page)
    assert len(sources) == 8 and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"\bhref=|url\(|@import|<script|<link|https?://", page)
    assert len(page) < 2_500_000


def test_html_escapes_what_it_shows(report):
    assert "'a&lt;b'" in report[0] and "Test &amp; Sons" in report[0]


def test_markdown_links_its_figures(folder, report):
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", report[1])
    assert len(links) == 8 and all((folder / link).is_file() for link in links)
    assert not list(folder.rglob("*.part"))


def test_an_empty_folder_gives_dashes_and_sentences(tmp_path):
    text = write_quickstart_report(tmp_path).with_suffix(".md").read_text()
    assert table_row(text, "this run") == ["–"] * 4
    assert text.lower().count("not shown: there") == 8 and "Nothing to report yet" in text


def test_one_run_alone_is_reported(tmp_path, folder, shapes):
    shutil.copytree(shapes, tmp_path / "shapes")
    shutil.copytree(folder / "seg", tmp_path / "seg")
    text = write_quickstart_report(tmp_path).with_suffix(".md").read_text()
    assert table_row(text, "this run") == ["–", "–", "61.2", "–"]
    assert "no predictions of a detector" in text and "segmentation.jpg" in text


def test_a_missing_folder_or_a_damaged_file_is_a_users_error(tmp_path):
    with pytest.raises(DataError, match="tools/quickstart.sh"):
        write_quickstart_report(tmp_path / "nothing")
    (tmp_path / "steps.json").write_text('{"steps": [')
    with pytest.raises(DataError, match="steps.json is not a complete JSON file"):
        write_quickstart_report(tmp_path)
    assert read_json(tmp_path / "missing.json") == {}


def test_undefined_scores_are_none():
    assert Run(Path(), {"coco/bbox_mAP": -1.0}).points("box AP") is None
    assert Run(Path(), {"mIoU": float("nan")}).points("mIoU") is None


def test_class_iou_counts_pixels(tmp_path):
    for name, labels in (("truth", [[1, 1, 2, 0]]), ("found", [[1, 2, 2, 3]])):
        (tmp_path / name).mkdir()
        Image.fromarray(np.array(labels, np.uint8)).save(tmp_path / name / "a.png")
    iou = class_iou(tmp_path / "found", tmp_path / "truth", 3)
    np.testing.assert_allclose(iou, [50, 50, np.nan])
    assert class_iou(tmp_path / "found", tmp_path / "truth", 3, ["a"]).shape == (3,)
    assert class_iou(tmp_path / "missing", tmp_path / "truth", 3) is None


def test_a_resumed_training_replaces_what_it_repeats(tmp_path):
    for start, losses in (("1", {10: 3.0, 20: 2.0, 30: 9.0}), ("2", {20: 1.5})):
        path = tmp_path / start / "vis_data" / "scalars.json"
        path.parent.mkdir(parents=True)
        lines = [json.dumps(dict(step=step, loss=loss)) for step, loss in losses.items()]
        path.write_text("\n".join([*lines, '{"step": 40, "lo']))  # killed while writing
    assert read_losses(tmp_path) == [(10, 3.0), (20, 1.5)]


def test_reconstruction_keeps_the_first_cluster(folder):
    run = folder / "pretrain"
    shown = reconstruct(run / "tiny.py", checkpoint_path(run), folder / "shapes/coco/val2017", rows=4)
    assert shown.images.shape == (4, 96, 96, 3) and shown.count == 6 and shown.given == 48
    given, rest = np.s_[:, :48, :48], np.s_[:, 48:, 48:]
    for changed in (shown.predictions, shown.means):
        assert (changed[given] == shown.images[given]).all()
        assert (changed[rest] != shown.images[rest]).any()
    with Image.open(folder / "shapes/coco/val2017/val_000000.jpg") as image:
        assert (shown.images[0] == np.asarray(image)).all()


def test_the_overview_is_one_small_image(folder, tmp_path):
    file = tmp_path / "docs" / "overview.png"
    write_overview(folder, file)
    with Image.open(file) as image:
        assert image.format == "PNG" and image.width == 1600
    assert file.stat().st_size < 300_000 and list(file.parent.iterdir()) == [file]
    with pytest.raises(DataError, match="finish the quickstart first: bash tools/quickstart.sh"):
        write_overview(tmp_path, file)


def test_smoothing_keeps_ends_and_lines():
    values = [5.0, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0]
    smoothed = smooth(values)
    assert smoothed[0] == 5.0 and smoothed[-1] == 9.0 and smoothed[3] == 3.0 and len(smoothed) == 7


@pytest.mark.parametrize(
    "seconds, words", [(4.6, "5 s"), (59.7, "1 min 0 s"), (725, "12 min 5 s"), (7300, "2 h 1 min")]
)
def test_duration(seconds, words):
    assert duration(seconds) == words
