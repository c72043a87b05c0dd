"""tools/predict.py: what it reads, what it writes, and what it refuses."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from arm_toolkit.inference import load
from arm_toolkit.inference.build import find
from arm_toolkit.inference.inputs import find_inputs
from arm_toolkit.inference.predictor import Predictor
from arm_toolkit.inference.run import Options, predict_files
from tests.helpers.full_disk import fill, small_disk
from tests.helpers.paths import ROOT
from tests.helpers.published import CLASSES, PALETTE, config_of
from tests.helpers.tools import invoke, run_tool
from tests.helpers.untrained import write_checkpoint

pytestmark = pytest.mark.xdist_group("inference")


def predict(*arguments, status: int = 0) -> str:
    """Run tools/predict.py; returns what it printed."""
    done = invoke("predict.py", *arguments)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def refused(*arguments) -> str:
    """Run tools/predict.py on what it refuses; returns its one line."""
    text = predict(*arguments, status=2)
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    return lines[0]


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def content(file: Path):
    return json.loads(file.read_text())


# ------------------------------------------------------------------------------------------------------ detection


@pytest.fixture(scope="module")
def annotated(models, images, shapes, tmp_path_factory) -> Path:
    """A data set whose objects are some of the detector's own detections, moved, so that its AP is not 0.

    The ids of images and categories are in no order, and file names have a folder.
    """
    root = tmp_path_factory.mktemp("annotated")
    (root / "photos").symlink_to(shapes / "coco/val2017")
    names = CLASSES["det"]
    categories = [dict(id=id, name=name) for id, name in ((7, names[2]), (3, names[0]), (20, names[1]))]
    ids = {category["name"]: category["id"] for category in categories}
    predictor = load(models["det"])
    listed, objects = [], []
    for number, path in enumerate(images):
        found = predictor(path)
        height, width = found.size
        listed.append(dict(id=100 - 7 * number, file_name=f"photos/{path.name}", height=height, width=width))
        for index in range(0, len(found), 3):
            mask = np.roll(found.masks[index], 1, axis=1)
            if mask.sum() < 4:
                continue
            box = rle.toBbox(rle.encode(np.asfortranarray(mask, np.uint8))).tolist()
            points = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
            polygons = [p.reshape(-1).astype(float).tolist() for p in points if len(p) > 2]
            if polygons:
                entry = dict(image_id=listed[-1]["id"], category_id=ids[found.names[index]], bbox=box, iscrowd=0)
                objects.append(dict(entry, id=len(objects) + 1, segmentation=polygons, area=float(mask.sum())))
    text = json.dumps(dict(images=listed, annotations=objects, categories=categories))
    (root / "objects.json").write_text(text)
    assert len(objects) > 5
    return root


@pytest.mark.slow
@pytest.mark.parametrize("tta", [[], ["--tta"]], ids=["plain", "tta"])
def test_results_evaluated_by_pycocotools_give_the_ap_of_test_py(tta, annotated, models, tmp_path):
    options = [f"test_dataloader.dataset.data_root={annotated}", "test_dataloader.dataset.ann_file=objects.json"]
    options += ["test_dataloader.dataset.data_prefix.img=", f"test_evaluator.ann_file={annotated / 'objects.json'}"]
    config = models["det"].with_suffix(".py")
    model = [models["det"]]
    if tta:
        views = """
tta_model = dict(type="InstanceTTAModel")
keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")
sizes = [dict(type="Resize", scale=(edge, edge), keep_ratio=True) for edge in (96, 128)]
flips = [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)]
views = [sizes, flips, [dict(type="PackDetInputs", meta_keys=keys)]]
tta_pipeline = [dict(type="LoadImageFromFile"), dict(type="TestTimeAug", transforms=views)]
del sizes, flips, views, keys
"""
        text = re.sub(r"^tta_(model|pipeline) = None\n", "", config.read_text(), flags=re.M)
        config = tmp_path / "det.py"
        config.write_text(text + views)
        model = [config, "--checkpoint", models["det"]]
    arguments = ["--work-dir", tmp_path / "work", "--cfg-options", *options]
    done = invoke("test.py", config, models["det"], *tta, *arguments)
    printed = dict(re.findall(r"coco/(bbox|segm)_mAP: ([\d.]+)", done.stdout + done.stderr))
    assert all(float(value) > 0.01 for value in printed.values()) and len(printed) == 2, done.stderr
    file, out = annotated / "objects.json", tmp_path / "out"
    predict(model[0], annotated / "photos", "--out", out, "--annotations", file, "--no-drawings", *tta, *model[1:])
    assert files_of(out) == ["images.json", "results.json"]
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        for kind, expected in printed.items():
            evaluation = COCOeval(truth, truth.loadRes(str(out / "results.json")), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert round(evaluation.stats[0], 3) == float(expected)


def test_detections_of_a_folder(models, images, tmp_path):
    out = tmp_path / "out"
    text = predict(models["det"], images[0].parent, "--out", out, "--score-thr", 0.1)
    assert f"{out}: 6 images predicted: results.json, images.json, drawn/" in text
    assert files_of(out) == [*(f"drawn/{p.stem}.jpg" for p in images), "images.json", "results.json"]
    listed = content(out / "images.json")
    assert [image["file_name"] for image in listed["images"]] == list(map(str, images))
    assert [image["id"] for image in listed["images"]] == [1, 2, 3, 4, 5, 6]
    assert [category["name"] for category in listed["categories"]] == list(CLASSES["det"])
    expected = load(models["det"])(images[2])
    entries = [entry for entry in content(out / "results.json") if entry["image_id"] == 3]
    assert [entry["category_id"] - 1 for entry in entries] == expected.labels.tolist()
    masks = np.stack([rle.decode(entry["segmentation"]) for entry in entries])
    assert np.array_equal(masks, expected.masks)
    original, drawn = (cv2.imread(str(path)).astype(int) for path in (images[2], out / f"drawn/{images[2].stem}.jpg"))
    assert original.shape == drawn.shape and np.abs(original - drawn).max() > 100


def test_a_higher_threshold_draws_less_and_keeps_the_results(models, images, tmp_path):
    for name, threshold in (("few", 1), ("many", 0)):
        predict(models["det"], images[0], "--out", tmp_path / name, "--score-thr", threshold)
    assert content(tmp_path / "few/results.json") == content(tmp_path / "many/results.json") != []
    few, many, original = (
        cv2.imread(str(path)).astype(int)
        for path in (*((tmp_path / n / f"drawn/{images[0].stem}.jpg") for n in ("few", "many")), images[0])
    )
    assert 2 * np.abs(few - original).mean() < np.abs(many - original).mean()  # the few differ by JPEG's losses


@pytest.mark.slow
def test_annotations_that_do_not_fit(annotated, models, images, shapes, tmp_path):
    file, out = annotated / "objects.json", tmp_path / "out"

    def changed(**parts) -> Path:
        target = tmp_path / "changed.json"
        target.write_text(json.dumps(content(file) | parts))
        return target

    run = [models["det"], annotated / "photos", "--out", out, "--annotations"]
    assert "does not list 6 of the 6 images" in refused(models["det"], images[0].parent, *run[2:], file)
    listed = content(file)["images"]
    assert "does not list 1 of the 6 images" in refused(*run, changed(images=listed[1:], annotations=[]))
    categories = content(file)["categories"]
    assert "has no category 'disc'" in refused(*run, changed(categories=[categories[0]], annotations=[]))
    assert "is not JSON" in refused(*run, images[0])
    twice = shutil.copytree(shapes / "coco/val2017", tmp_path / "other/photos")
    assert "are both 'photos/" in refused(models["det"], twice, *run[1:], file)
    assert "only for detection" in refused(models["seg"], *run[1:], file)
    assert not out.exists()
    listed[0]["width"] += 1
    text = predict(*run, changed(images=listed), status=1)
    assert f"{images[0].name} has 96x96 pixels, but the annotation file states 97x96" in text


# --------------------------------------------------------------------------------- segmentation, classification


@pytest.mark.slow
@pytest.mark.parametrize("zero_ignored", [True, False])
def test_label_maps_have_a_palette_and_test_pys_values(zero_ignored, models, shapes, images, tmp_path):
    model, classes, colours = models["seg"], CLASSES["seg"], PALETTE
    if not zero_ignored:  # class k is stored as k
        cfg, model = config_of("seg", shapes), tmp_path / "seg.pth"
        classes, colours = ("nothing", *classes), [[9, 9, 9], *colours]
        for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
            head.num_classes = 5
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset.update(reduce_zero_label=False, metainfo=dict(classes=classes, palette=colours))
        cfg.dump(model.with_suffix(".py"))
        write_checkpoint(cfg, model, classes)
    predict(model, images[0].parent, "--out", tmp_path / "out", "--batch-size", 4)
    test = ["--out", tmp_path / "labels", "--work-dir", tmp_path / "work"]
    assert invoke("test.py", model.with_suffix(".py"), model, *test).returncode == 0
    described = content(tmp_path / "out/results.json")
    assert [one["name"] for one in described["classes"]] == list(classes)
    assert described["classes"][0]["label"] == zero_ignored
    assert [one["colour"] for one in described["classes"]] == colours
    for path, image in zip(images, described["images"], strict=True):
        found = Image.open(tmp_path / "out" / image["labels"])
        stored = np.asarray(Image.open(tmp_path / f"labels/{path.stem}.png"))
        assert found.mode == "P" and (np.asarray(found) != stored).mean() < 1e-3  # a batch may round differently
        assert stored.min() >= zero_ignored
        pixels = np.asarray(found.convert("RGB"))
        for one in described["classes"]:
            assert (pixels[np.asarray(found) == one["label"]] == one["colour"]).all()
        assert sum(image["shares"].values()) == pytest.approx(1) and image["file"] == str(path)
        assert (tmp_path / f"out/drawn/{path.stem}.jpg").is_file()


def test_windows(models, shapes, images, tmp_path):
    """A window of the image's size changes nothing; smaller ones overlap by a third, as with that stride in mmseg."""
    cfg = config_of("seg", shapes)
    cfg.model.test_cfg.update(mode="slide", crop_size=(48, 48), stride=(32, 32))
    expected = load(write_checkpoint(cfg, tmp_path / "slide.pth", CLASSES["seg"]))(images[0]).labels + 1
    for size in (96, 48):
        predict(models["seg"], images[0], "--out", tmp_path / str(size), "--window", size, "--no-drawings")
    predict(models["seg"], images[0], "--out", tmp_path / "whole")
    whole, same, windows = (
        np.asarray(Image.open(tmp_path / name / f"labels/{images[0].stem}.png")) for name in ("whole", "96", "48")
    )
    assert np.array_equal(whole, same) and np.array_equal(windows, expected) and not np.array_equal(whole, windows)


def test_classes(models, images, tmp_path):
    predict(models["cls"], images[0].parent, "--out", tmp_path / "out", "--top-k", 2)
    assert files_of(tmp_path / "out") == ["results.csv", "results.json"]
    expected = load(models["cls"])(images[1]).top(2)
    written = content(tmp_path / "out/results.json")
    assert written["classes"] == list(CLASSES["cls"])
    assert written["images"][1]["top"] == [[label, pytest.approx(score)] for label, score in expected]
    with open(tmp_path / "out/results.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "class 1", "score 1", "class 2", "score 2"] and len(rows) == 7
    assert rows[2] == [str(images[1]), *(c for n, s in expected for c in (CLASSES["cls"][n], f"{s:.6f}"))]


# ----------------------------------------------------------------------------------------------------------- videos


@pytest.fixture
def film(images, tmp_path) -> Path:
    """Twelve frames with sides of odd length, 12 a second."""
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=12, width=95, height=81, pix_fmt="yuv444p")
        for image in images * 2:
            frame = np.ascontiguousarray(cv2.imread(str(image))[:81, :95, ::-1])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("task", CLASSES)
def test_video(task, film, models, tmp_path):
    out = tmp_path / "out"
    text = predict(models[task], film, "--out", out, "--batch-size", 5)
    assert files_of(out) == ["videos/film.json", "videos/film.mp4"] and "1 video predicted" in text
    result = content(out / "videos/film.json")
    assert (result["fps"], result["height"], result["width"]) == (12, 81, 95)
    assert [frame["frame"] for frame in result["frames"]] == list(range(12))
    drawn = cv2.VideoCapture(str(out / "videos/film.mp4"))
    assert drawn.get(cv2.CAP_PROP_FPS) == 12
    count = 0
    while True:
        read, frame = drawn.read()
        if not read:
            break
        assert frame.shape == (82, 96, 3)  # H.264 has even sides
        count += 1
    assert count == 12
    if task == "seg":
        masks = [rle.decode(one["segmentation"]) for one in result["frames"][3]["segments"]]
        assert np.array_equal(np.sum(masks, axis=0), np.ones((81, 95)))


def test_a_video_that_is_cut_off(models, film, tmp_path):
    """What can be decoded is kept, and the rest is named."""
    whole = film.read_bytes()
    film.write_bytes(whole[: len(whole) * 2 // 3])
    text = predict(models["cls"], film, "--out", tmp_path / "out", status=1)
    count = len(content(tmp_path / "out/videos/film.json")["frames"])
    assert 4 < count < 12 and f"film.mkv states 12 frames, of which {count} can be decoded" in text


# ----------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.slow
def test_nothing_is_printed_that_asks_nothing_of_a_user(models, images, tmp_path):
    """mmseg prints a line on import, of a data set that it does not have; it is imported late with this model."""
    done = run_tool("predict.py", models["seg"], images[0], "--out", tmp_path / "out")
    assert done.returncode == 0 and "1 image predicted" in done.stdout
    assert "OneDL" not in done.stdout + done.stderr and "arning" not in done.stdout + done.stderr, done


def test_files_of_one_name_do_not_overwrite_each_other(models, images, tmp_path):
    for name in ("a/x.jpg", "b/x.jpg", "b/deep/x.jpg", "b/X.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images[len(files_of(tmp_path)) % 6], tmp_path / name)
    Image.open(images[5]).save(tmp_path / "b/x.png")
    given = [tmp_path / "a", tmp_path / "b", tmp_path / "a/x.jpg"]
    before = files_of(tmp_path)
    predict(models["seg"], *given, "--out", tmp_path / "out", "--no-drawings")
    described = content(tmp_path / "out/results.json")["images"]
    assert len(described) == len({image["labels"].casefold() for image in described}) == 5
    predictor = load(models["seg"])
    for image in described:
        stored = np.asarray(Image.open(tmp_path / "out" / image["labels"]))
        assert np.array_equal(stored, predictor(image["file"]).labels + predictor.reduce_zero_label)
    assert {image["labels"] for image in described} >= {"labels/x.png", "labels/X_2.png", "labels/deep/x.png"}
    after = [name for name in files_of(tmp_path) if not name.startswith("out/")]
    assert after == before


def test_folders_patterns_and_lists(models, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for path in images[:3]:
        shutil.copy(path, tmp_path / "in")
    (tmp_path / "in/notes.md").write_text("no image")
    (tmp_path / "list.txt").write_text(f"{images[4]}\n{images[5]}\n")
    shutil.copy(images[3], tmp_path / "in/[odd] name.jpg")
    text = predict(models["cls"], "in", "in/*_00000[01].jpg", "in/[odd] name.jpg", "list.txt", "--out", "out")
    found = [Path(image["file"]).name for image in content(tmp_path / "out/results.json")["images"]]
    assert Counter(found) == Counter(["[odd] name.jpg", *(p.name for p in images[:3]), *(p.name for p in images[4:])])
    assert "6 images predicted" in text


def test_a_bad_file_is_skipped_and_named(models, images, tmp_path):
    shutil.copytree(images[0].parent, tmp_path / "in")
    (tmp_path / "in/text.jpg").write_text("no image")
    (tmp_path / "in/cut.jpg").write_bytes(images[0].read_bytes()[:600])
    (tmp_path / "in/film.mp4").write_bytes(b"no video")
    for task in CLASSES:
        text = predict(models[task], tmp_path / "in", "--out", tmp_path / task, "--batch-size", 3, status=1)
        skipped = [line for line in text.splitlines() if line.startswith("skipped: ")]
        assert len(skipped) == 3 and "6 images predicted" in text
        assert all(any(name in line for line in skipped) for name in ("text.jpg", "cut.jpg", "film.mp4"))


def test_a_name_that_is_not_utf_8(models, images, tmp_path):
    name = os.fsdecode(bytes(tmp_path / "in") + b"/\xff.jpg")
    (tmp_path / "in").mkdir()
    shutil.copy(images[0], name)
    for task in CLASSES:
        predict(models[task], tmp_path / "in", "--out", tmp_path / task)
    assert content(tmp_path / "cls/results.json")["images"][0]["file"] == name
    assert os.fsencode(name) in (tmp_path / "cls/results.csv").read_bytes()


def test_images_that_exceed_the_memory(models, images, tmp_path):
    """They are predicted one by one, and one that is too large alone is skipped and named."""

    class Greedy(Predictor):
        def predict_prepared(self, items):
            if len(items) > 1 or items[0].size != (96, 96):
                torch.empty(2**50)
            return super().predict_prepared(items)

    large = tmp_path / "large.jpg"
    Image.new("RGB", (200, 100)).save(large)
    inputs = find_inputs([str(images[0]), str(large), str(images[1])], tmp_path / "out")
    done = predict_files(Greedy(find(models["cls"])), inputs, Options(tmp_path / "out", batch_size=3))
    assert done.images == 2 and len(done.problems) == 1
    assert "large.jpg (200x100 pixels) does not fit into the memory" in done.problems[0]


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(models, images, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(300):
        shutil.copy(images[number % 6], tmp_path / f"in/{number:03}.jpg")
    command = [sys.executable, ROOT / "tools/predict.py", models["seg"], tmp_path / "in", "--out", tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "out/drawn/003.jpg").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in errors, errors
    count = len(content(tmp_path / "out/results.json")["images"])
    assert 3 <= count < 300 and f"results.json holds {count} images" in errors
    assert not list(tmp_path.rglob("*.part"))


def test_nothing_is_predicted(models, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    text = predict(models["det"], tmp_path / "text.jpg", "--out", tmp_path / "out", status=1)
    assert "nothing is predicted" in text and files_of(tmp_path / "out") == []


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["MODEL", "nothing", "--out", "OUT"], "nothing does not exist"),
        (["MODEL", "IN/*.png", "--out", "OUT"], "matches no image or video"),
        (["MODEL", "EMPTY", "--out", "OUT"], "no images or videos under"),
        (["MODEL", "IN", "--out", "IN"], "from which images are read; give a folder outside of it"),
        (["MODEL", "IN", "--out", "IN/out"], "from which images are read"),
        (["MODEL", "IN/x.jpg", "--out", "IN"], "from which images are read"),
        (["nothing.pth", "IN", "--out", "OUT"], "nothing.pth does not exist; give a published folder"),
        (["MODEL", "IN", "--out", "OUT", "--checkpoint", "MODEL"], "only a configuration (.py) needs it"),
        (["MODEL", "IN", "--out", "OUT", "--score-thr", "0.5"], "only for detection"),
        (["MODEL", "IN", "--out", "OUT", "--score-thr", "5"], "give a number from 0 to 1"),
        (["MODEL", "IN", "--out", "OUT", "--top-k", "5"], "only for classification"),
        (["MODEL", "IN", "--out", "OUT", "--batch-size", "0"], "--batch-size 0: give at least 1"),
        (["MODEL", "IN", "--out", "OUT", "--window", "0"], "--window 0: give at least 1"),
        (["MODEL", "IN", "--out", "OUT", "--tta"], "has no tta_model"),
        (["MODEL", "IN", "--out", "FILE"], "FILE is not a folder"),
    ],
)
def test_wrong_arguments_cost_nothing(arguments, says, models, images, tmp_path):
    places = {name: str(tmp_path / name) for name in ("IN", "OUT", "EMPTY", "FILE")} | dict(MODEL=str(models["seg"]))
    for name in ("IN", "EMPTY"):
        (tmp_path / name).mkdir()
    shutil.copy(images[0], tmp_path / "IN/x.jpg")
    (tmp_path / "FILE").touch()
    before = files_of(tmp_path)
    given = [re.sub("|".join(places), lambda found: places[found[0]], argument) for argument in arguments]
    assert says in refused(*given)
    assert files_of(tmp_path) == before and not (tmp_path / "OUT").exists()


@pytest.mark.parametrize("given", ["image", "video"])
def test_full_disk(given, models, images, film, tmp_path):
    """One line, no half file, and an earlier result as it was."""
    with small_disk(tmp_path / "disk") as disk:
        (disk / "out").mkdir()
        (disk / "out/results.json").write_text("earlier")
        (disk / "out/videos").mkdir()
        fill(disk)
        text = refused(models["seg"], images[0] if given == "image" else film, "--out", disk / "out")
        assert "No space left on device" in text
        assert files_of(disk / "out") == ["results.json"] and (disk / "out/results.json").read_text() == "earlier"
