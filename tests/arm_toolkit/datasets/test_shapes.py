"""The generated data set is reproducible, and its annotations match its images."""

import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from arm_images.errors import DataError
from arm_toolkit.datasets.scenes import CLASSES, MIN_VISIBLE, draw_scene
from arm_toolkit.datasets.shapes import SEG_CLASSES, write_shapes
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "data"
    assert write_shapes(out, train=12, val=4, seed=3)
    return out


@pytest.fixture(scope="module")
def scenes() -> list:
    return [draw_scene(0, "train", index, size=128) for index in range(150)]


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_two_runs_write_the_same_bytes(shapes, tmp_path):
    write_shapes(tmp_path / "again", train=12, val=4, seed=3)
    first, second = contents(shapes), contents(tmp_path / "again")
    assert first == second
    assert len(first) == 3 + 3 * 16


def test_more_images_leave_the_first_ones_unchanged(shapes, tmp_path):
    write_shapes(tmp_path / "more", train=15, val=6, seed=3)
    few, more = contents(shapes), contents(tmp_path / "more")
    pictures = {name: data for name, data in few.items() if not name.endswith(".json")}
    assert pictures.items() <= more.items()
    for split in ("train", "val"):
        name = f"coco/annotations/instances_{split}2017.json"
        for part in ("images", "annotations"):
            start = json.loads(few[name])[part]
            assert json.loads(more[name])[part][: len(start)] == start


def test_seed_split_index_and_size_change_the_image():
    first = draw_scene(0, "train", 0).image
    for other in ((1, "train", 0), (0, "val", 0), (0, "train", 1)):
        assert not np.array_equal(first, draw_scene(*other).image), other
    assert draw_scene(0, "train", 0, size=96).image.shape == (96, 96, 3)


def test_coco_masks_and_label_maps_agree_pixel_by_pixel(shapes):
    for coco_split, ade_split in (("train2017", "training"), ("val2017", "validation")):
        coco = COCO(shapes / "coco" / "annotations" / f"instances_{coco_split}.json")
        assert coco.imgs
        for image_id, image in coco.imgs.items():
            stem = Path(image["file_name"]).stem
            labels = Image.open(shapes / "ade" / "annotations" / ade_split / f"{stem}.png")
            labels = np.array(labels)
            assert labels.shape == (image["height"], image["width"])
            from_masks = np.ones_like(labels)
            seen = np.zeros(labels.shape, dtype=int)
            for annotation in coco.imgToAnns[image_id]:
                mask = coco.annToMask(annotation).astype(bool)
                seen += mask
                from_masks[mask] = 1 + annotation["category_id"]
                y, x = np.nonzero(mask)
                box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
                assert annotation["bbox"] == box
                assert annotation["area"] == mask.sum()
                assert annotation["iscrowd"] == 0
            assert seen.max() == 1, "instances overlap"
            np.testing.assert_array_equal(from_masks, labels)


def test_annotations_are_those_of_the_drawn_scene(shapes):
    coco = COCO(shapes / "coco" / "annotations" / "instances_val2017.json")
    for index, (image_id, image) in enumerate(sorted(coco.imgs.items())):
        scene = draw_scene(3, "val", index)
        annotations = coco.imgToAnns[image_id]
        assert [a["category_id"] for a in annotations] == scene.category_ids
        for annotation, mask in zip(annotations, scene.masks):
            np.testing.assert_array_equal(mask_utils.decode(annotation["segmentation"]), mask)
        written = Image.open(shapes / "coco" / "val2017" / image["file_name"])
        error = np.abs(np.array(written, dtype=int) - scene.image).mean()
        assert error < 4, "the JPEG does not show the scene"


def test_both_layouts_hold_the_same_images(shapes):
    for coco_split, ade_split in (("train2017", "training"), ("val2017", "validation")):
        detection = contents(shapes / "coco" / coco_split)
        assert detection == contents(shapes / "ade" / "images" / ade_split)
        labels = contents(shapes / "ade" / "annotations" / ade_split)
        assert {Path(name).stem for name in detection} == {Path(name).stem for name in labels}


def test_ids_are_unique_across_the_splits(shapes):
    for part in ("images", "annotations"):
        ids = []
        for split in ("train", "val"):
            file = shapes / "coco" / "annotations" / f"instances_{split}2017.json"
            ids += [entry["id"] for entry in json.loads(file.read_text())[part]]
        assert len(ids) == len(set(ids))


def test_meta_names_the_classes_in_label_order(shapes):
    meta = json.loads((shapes / "meta.json").read_text())
    assert meta["classes"] == ["background", "disc", "square", "triangle"] == list(SEG_CLASSES)
    assert len(meta["palette"]) == 4
    expected = {"version": 2, "seed": 3, "size": 192, "train": 12, "val": 4}
    assert meta["parameters"] == expected


def test_objects_hide_one_another_but_stay_visible(scenes):
    hidden = 0
    for scene in scenes:
        shares = scene.masks.sum(axis=(1, 2)) / scene.whole_areas
        assert (shares >= MIN_VISIBLE).all()
        assert shares.max() < 1.1
        # the border cuts objects off, too, so look only at those that do not touch it
        border = np.ones(scene.image.shape[:2], dtype=bool)
        border[1:-1, 1:-1] = False
        inside = ~(scene.masks & border).any(axis=(1, 2))
        hidden += bool((shares[inside] < 0.85).any())
    assert hidden > 0.15 * len(scenes)


def test_classes_are_balanced_in_number_and_area(scenes):
    number, area = Counter(), Counter()
    for scene in scenes:
        for category_id, mask in zip(scene.category_ids, scene.masks):
            number[category_id] += 1
            area[category_id] += int(mask.sum())
    for counts in (number, area):
        assert set(counts) == {1, 2, 3}
        assert max(counts.values()) < 1.35 * min(counts.values())
    per_scene = Counter(len(scene.category_ids) for scene in scenes)
    assert set(per_scene) == {1, 2, 3}


def test_colour_does_not_tell_the_class(scenes):
    colours = {category_id: [] for category_id in range(1, 1 + len(CLASSES))}
    for scene in scenes:
        for category_id, mask in zip(scene.category_ids, scene.masks):
            colours[category_id].append(scene.image[mask].mean(axis=0))
    means = np.array([np.mean(values, axis=0) for values in colours.values()])  # (class, RGB)
    spread = np.mean([np.std(values, axis=0) for values in colours.values()])
    assert np.ptp(means, axis=0).max() < spread, "class means differ by more than one object does"


def test_same_data_set_is_left_alone(shapes):
    before = (shapes / "meta.json").stat().st_mtime_ns
    assert not write_shapes(shapes, train=12, val=4, seed=3)
    assert (shapes / "meta.json").stat().st_mtime_ns == before


def test_other_parameters_need_force(tmp_path):
    out = tmp_path / "data"
    write_shapes(out, train=2, val=1, size=96)
    with pytest.raises(DataError, match="'train': 2.*--force"):
        write_shapes(out, train=3, val=1, size=96)
    assert write_shapes(out, train=3, val=1, size=96, force=True)
    assert len(list((out / "coco" / "train2017").iterdir())) == 3
    assert list(tmp_path.iterdir()) == [out], "something was left beside it"


def test_lost_files_are_noticed(tmp_path):
    out = tmp_path / "data"
    write_shapes(out, train=2, val=1, size=96)
    (out / "ade" / "annotations" / "training" / "train_000001.png").unlink()
    with pytest.raises(DataError, match="contains 1 files instead of 2.*--force"):
        write_shapes(out, train=2, val=1, size=96)


@pytest.mark.parametrize("meta", [None, "not json", "[]", '{"dataset": "CamVid"}'])
def test_a_folder_of_something_else_is_never_replaced(tmp_path, meta):
    (tmp_path / "thesis.tex").write_text("years of work")
    if meta is not None:
        (tmp_path / "meta.json").write_text(meta)
    before = contents(tmp_path)
    with pytest.raises(DataError, match="something other than generated shapes"):
        write_shapes(tmp_path, train=1, val=1, size=96, force=True)
    assert contents(tmp_path) == before


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    from arm_toolkit.datasets import shapes

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_add_to_coco", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "data", train=1, val=1, size=96)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": -1}, {"size": 64}, {"seed": -1}])
def test_parameters_out_of_range_are_named(tmp_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(DataError, match=f"{name} is {value}"):
        write_shapes(tmp_path / "data", **wrong)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def prepare_data(monkeypatch, capsys):
    """Run the tool as from the command line; return its exit status, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(ROOT / "tools" / "prepare_data.py"), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return run


def test_command_line(tmp_path, prepare_data):
    out = tmp_path / "data"
    command = ["shapes", out, "--train", 3, "--val", 2, "--size", 96]
    status, stdout, stderr = prepare_data(*command)
    assert status == 0 and "written" in stdout, stderr
    assert "already there" in prepare_data(*command)[1]
    status, stdout, stderr = prepare_data(*command, "--seed", 1)
    assert status == 2 and "--force" in stderr
    assert len(stderr.splitlines()) == 1

    assert prepare_data("check", "coco", out / "coco", "--decode")[0] == 0
    assert prepare_data("check", "ade", out / "ade", "--num-classes", 4)[0] == 0
    assert prepare_data("check", "images", out / "ade" / "images")[0] == 0
    status, stdout, stderr = prepare_data("check", "ade", out / "ade", "--num-classes", 3)
    assert status == 1 and "error: " in stdout
    one_file = out / "coco" / "annotations" / "instances_val2017.json"
    assert prepare_data("check", "coco", one_file, "--images", out / "coco" / "val2017")[0] == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["shapes", "OUT", "--train", "0"], "train is 0"),
        (["shapes", "OUT/file/below"], "cannot be written"),
        (["shapes", "OUT/file"], "is a file"),
        (["check", "coco", "OUT/nowhere"], "does not exist"),
        (["check", "coco", "OUT/file"], "--images FOLDER"),
        (["check", "coco", "OUT", "--images", "x"], "--images x is for a single annotation file"),
        (["check", "ade", "OUT/nowhere"], "not a folder"),
        (["check", "ade", "OUT", "--num-classes", "1000"], "--num-classes is 1000"),
        (["check", "images", "OUT/nowhere"], "does not exist"),
    ],
)
def test_command_line_says_in_one_line_what_is_wrong(tmp_path, prepare_data, arguments, words):
    (tmp_path / "file").write_text("")
    status, stdout, stderr = prepare_data(*(a.replace("OUT", str(tmp_path)) for a in arguments))
    assert status == 2
    assert words in stderr and len(stderr.splitlines()) == 1 and not stdout
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help_has_examples(prepare_data):
    status, stdout, _ = prepare_data("--help")
    assert status == 0
    assert "python tools/prepare_data.py shapes" in stdout


def test_mmdet_reads_the_masks(shapes):
    transforms = pytest.importorskip("mmdet.datasets.transforms", reason="needs mmdet")
    datasets = pytest.importorskip("mmdet.datasets")
    dataset = datasets.CocoDataset(
        ann_file=str(shapes / "coco" / "annotations" / "instances_train2017.json"),
        data_prefix=dict(img=str(shapes / "coco" / "train2017")),
        metainfo=dict(classes=CLASSES),
        pipeline=[],
    )
    load_image = pytest.importorskip("mmcv.transforms").LoadImageFromFile()
    load = transforms.LoadAnnotations(with_bbox=True, with_mask=True)
    assert len(dataset) == 12
    for index in range(len(dataset)):
        scene = draw_scene(3, "train", index)
        results = load(load_image(dataset.get_data_info(index)))
        assert not results["gt_ignore_flags"].any()
        assert (results["gt_bboxes_labels"] + 1).tolist() == scene.category_ids
        np.testing.assert_array_equal(results["gt_masks"].masks, scene.masks)
