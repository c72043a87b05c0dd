"""The data checks find and name each planted fault, and accept real data."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arm_toolkit.datasets.check import check_coco
from arm_toolkit.datasets.check_ade import check_ade
from arm_toolkit.datasets.check_images import check_images
from arm_toolkit.datasets.shapes import CLASSES, write_shapes
from tests.helpers.paths import SHARED

DATA = SHARED / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real photographs are not here")


@pytest.fixture
def shapes(tmp_path) -> Path:
    write_shapes(tmp_path / "data", train=4, val=2, size=96)
    return tmp_path / "data"


@pytest.fixture
def coco(shapes) -> Path:
    return shapes / "coco"


@pytest.fixture
def ade(shapes) -> Path:
    return shapes / "ade"


def look_at_coco(coco: Path, **options):
    file = coco / "annotations" / "instances_train2017.json"
    return check_coco(file, coco / "train2017", **options)


def change_coco(coco: Path, change) -> None:
    file = coco / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def cut_off(file: Path) -> None:
    """Cut the file to half its length, leaving other hard links to it unchanged."""
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[: len(data) // 2])


def only_error(report) -> str:
    assert len(report.errors) == 1, str(report)
    assert not report.ok
    return report.errors[0]


# COCO


def test_coco_without_faults_passes(coco):
    report = look_at_coco(coco, classes=CLASSES, decode=True)
    assert report.ok, str(report)
    assert report.facts["images"] == 4
    assert report.facts["crowds"] == report.facts["images_without_objects"] == 0
    assert sum(report.facts["per_class"].values()) == report.facts["annotations"] > 0
    assert str(report).splitlines()[0].endswith("instances_train2017.json: ok")


def test_coco_missing_images_are_counted_and_named(coco):
    for index in (1, 2):
        (coco / "train2017" / f"train_{index:06d}.jpg").unlink()
    report = look_at_coco(coco, decode=True)
    error = only_error(report)
    assert "2 of 4 images do not exist" in error and "train_000001.jpg, train_000002.jpg" in error
    assert report.facts["missing"] == 2


def test_long_lists_of_names_are_cut(coco):
    def plant(content):
        content["images"] += [{"id": 100 + i, "file_name": f"gone_{i}.jpg", "height": 9, "width": 9} for i in range(20)]

    change_coco(coco, plant)
    report = look_at_coco(coco)
    error = only_error(report)
    assert "20 of 24" in error and "gone_4.jpg" in error and "gone_5.jpg" not in error
    assert "(15 more)" in error
    assert report.facts["images_without_objects"] == 20


def plant_in_first(part, **values):
    def plant(content):
        content[part][0].update(values)

    return plant


@pytest.mark.parametrize(
    "plant, words",
    [
        (plant_in_first("annotations", category_id=77), "a category id that is not among the categories"),
        (plant_in_first("annotations", image_id=555), "1 annotations belong to no listed image"),
        (plant_in_first("annotations", bbox=[1, 1, -5, 9]), "boxes are not .*annotation ids: 10"),
        (plant_in_first("annotations", bbox=[1, 1, 9]), "1 boxes are not"),
        (plant_in_first("annotations", bbox=[1, 1, 9, float("nan")]), "1 boxes are not"),
        (plant_in_first("annotations", bbox=[1, 1, 9, 0]), "less than 1 pixel wide or high"),
        (plant_in_first("annotations", bbox=[90, 1, 9, 9]), "out of their image.*: 10"),
        (plant_in_first("annotations", bbox=[-2, 1, 9, 9]), "out of their image"),
        (plant_in_first("annotations", bbox=None), "1 boxes are not"),
        (plant_in_first("images", id=2), "ids of 'images' are used more than once: 2"),
        (plant_in_first("images", width=95), "another size than the file states.*96x96, not 95x96"),
        (plant_in_first("images", height="96"), "'images' have no proper 'height'"),
        (lambda content: content["images"][0].pop("file_name"), "no proper 'file_name'"),
        (lambda content: content["images"].append(3), "no proper 'id': position 4"),
        (lambda content: content.pop("categories"), "no list 'categories'"),
        (lambda content: content["annotations"].clear(), "has no annotations"),
    ],
)
def test_coco_faults_are_found(coco, plant, words):
    change_coco(coco, plant)
    report = look_at_coco(coco, decode=True)
    assert not report.ok
    assert any(re.search(words, error) for error in report.errors), str(report)


def test_coco_expected_class_that_is_not_there(coco):
    error = only_error(look_at_coco(coco, classes=["disc", "person"]))
    assert error.endswith("person") and "triangle" in error


def test_coco_truncated_jpeg_is_found(coco):
    cut_off(coco / "train2017" / "train_000002.jpg")
    for decode in (False, True):  # a file without its end is decoded in any case
        assert "1 images cannot be decoded: train_000002.jpg" in only_error(look_at_coco(coco, decode=decode))


def test_coco_file_that_is_missing_or_cut_off(coco):
    file = coco / "annotations" / "instances_train2017.json"
    cut_off(file)
    assert "not JSON" in only_error(look_at_coco(coco))
    file.unlink()
    assert "cannot be read (No such file" in only_error(look_at_coco(coco))
    file.write_text("[1, 2]")
    assert not look_at_coco(coco).ok


def test_coco_crowds_are_counted(coco):
    change_coco(coco, plant_in_first("annotations", iscrowd=1))
    report = look_at_coco(coco)
    assert report.ok and report.facts["crowds"] == 1


def test_coco_a_rare_empty_box_is_a_note(coco):
    """COCO train2017 has boxes of height zero; mmdet skips them."""

    def plant(content):
        sample = content["annotations"][0]
        content["annotations"] = [dict(sample, id=i) for i in range(2000)]
        content["annotations"][7]["bbox"] = [5, 5, 3, 0]

    change_coco(coco, plant)
    report = look_at_coco(coco)
    assert report.ok, str(report)
    assert any("1 of 2000 boxes" in note and note.endswith(": 7") for note in report.notes)


def test_rotated_images_are_measured_upright(coco):
    """Data loaders apply the EXIF orientation, and COCO's sizes are those of the upright image."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    file = coco / "train2017" / "train_000000.jpg"
    file.unlink()
    Image.new("RGB", (50, 96)).save(file, exif=exif)
    change_coco(coco, plant_in_first("images", width=96, height=50))
    assert not any("than the file states" in error for error in look_at_coco(coco, decode=True).errors)


# ADE layout


def test_ade_without_faults_passes(ade):
    report = check_ade(ade, 4, decode=True)
    assert report.ok, str(report)
    assert report.facts["pairs"] == {"training": 4, "validation": 2}
    for share in report.facts["pixel_share"].values():
        assert len(share) == 5 and share[0] == 0
        assert sum(share) == pytest.approx(1)
    folder = ade / "annotations" / "training"
    maps = np.stack([np.array(Image.open(file)) for file in folder.iterdir()])
    assert report.facts["pixel_share"]["training"][2] == pytest.approx((maps == 2).mean())


def test_ade_label_77_is_found(ade):
    file = ade / "annotations" / "validation" / "val_000001.png"
    label = np.array(Image.open(file))
    label[3, 5] = 77
    Image.fromarray(label).save(file)
    error = only_error(check_ade(ade, 4))
    assert "validation: 1 label maps" in error and "1..4" in error and "val_000001.png (77)" in error
    assert check_ade(ade, 77).ok


def test_ade_255_is_ignored_with_a_note(ade):
    file = ade / "annotations" / "training" / "train_000001.png"
    label = np.array(Image.open(file))
    label[:2] = 255
    Image.fromarray(label).save(file)
    report = check_ade(ade, 4)
    assert report.ok, str(report)
    assert any("192 pixels are 255" in note for note in report.notes)
    assert report.facts["pixel_share"]["training"][0] == pytest.approx(192 / (4 * 96 * 96))


def test_ade_pairs_must_match(ade):
    (ade / "annotations" / "training" / "train_000000.png").unlink()
    (ade / "images" / "validation" / "val_000001.jpg").unlink()
    report = check_ade(ade, 4)
    assert len(report.errors) == 2, str(report)
    assert report.errors[0] == "training: 1 images without a label map (.png): train_000000"
    assert report.errors[1] == "validation: 1 label maps without an image (.jpg): val_000001"


def test_ade_sizes_must_match(ade):
    file = ade / "annotations" / "training" / "train_000003.png"
    Image.open(file).resize((48, 96), Image.Resampling.NEAREST).save(file)
    error = only_error(check_ade(ade, 4))
    assert "train_000003 (image 96x96, labels 48x96)" in error


def test_ade_colour_coded_labels_are_refused(ade):
    file = ade / "annotations" / "training" / "train_000003.png"
    Image.open(file).convert("RGB").save(file)
    assert "train_000003.png (not one 8-bit channel: RGB" in only_error(check_ade(ade, 4))


def test_ade_damaged_files_are_named(ade):
    cut_off(ade / "annotations" / "training" / "train_000001.png")
    assert "1 files cannot be decoded: train_000001.png" in only_error(check_ade(ade, 4))
    cut_off(ade / "images" / "training" / "train_000002.jpg")
    for decode in (False, True):
        error = only_error(check_ade(ade, 4, decode=decode))
        assert "2 files" in error and "train_000002.jpg" in error


def test_ade_wrong_layout_is_explained(tmp_path, ade):
    report = check_ade(tmp_path, 4, splits=["training"])
    assert len(report.errors) == 2 and "images/training" in report.errors[0]
    for file in (ade / "images" / "training").iterdir():
        file.rename(file.with_suffix(".png"))
    report = check_ade(ade, 4, splits=["training"])
    assert "names must end in .jpg (img_suffix); left out 4 other files (.png)" in only_error(report)
    assert check_ade(ade, 4, splits=["training"], img_suffix=".png").ok


# Images for pretraining


@pytest.fixture
def images_folder(tmp_path) -> Path:
    folder = tmp_path / "images_folder"
    (folder / "deep").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "a.jpg")
    Image.new("L", (50, 60)).save(folder / "grey.png")
    Image.new("CMYK", (64, 64)).save(folder / "deep" / "print.JPG")
    (folder / "readme.txt").write_text("no image")
    return folder


def test_images_in_a_folder(images_folder):
    report = check_images(images_folder)
    assert report.ok, str(report)
    assert report.facts["images"] == 3
    assert report.facts["modes"] == {"RGB": 1, "L": 1, "CMYK": 1}
    assert report.facts["short_side"] == (30, 64)
    assert report.facts["long_side"] == (40, 64)
    assert any(note.startswith("1 greyscale, 1 CMYK") for note in report.notes)


def test_images_that_cannot_be_decoded_are_named(images_folder):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(images_folder / "cut.jpg")
    cut_off(images_folder / "cut.jpg")
    (images_folder / "page.jpg").write_text("<html>404</html>")
    error = only_error(check_images(images_folder))
    assert "2 of 5 images" in error and "cut.jpg" in error and "page.jpg" in error
    assert "2 of 5 images" in only_error(check_images(images_folder, decode=False))


def test_images_of_a_list(images_folder, tmp_path):
    listed = tmp_path / "lists" / "train.txt"
    listed.parent.mkdir()
    listed.write_text("a.jpg\n\ngrey.png\na.jpg\n")
    report = check_images(listed, root=images_folder)
    assert report.ok, str(report)
    assert any("listed more than once: " in note and "a.jpg" in note for note in report.notes)
    error = only_error(check_images(listed))
    assert "lists 3 files that do not exist" in error and "set prefix" in error


def test_images_nothing_there(tmp_path):
    assert "no images" in only_error(check_images(tmp_path))
    assert "does not exist" in only_error(check_images(tmp_path / "nowhere"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x80\x81")
    assert "not a list of paths in UTF-8" in only_error(check_images(tmp_path / "binary"))


def test_progress_goes_to_stderr(ade, images_folder, capsys):
    check_ade(ade, 4, progress=True)
    check_images(images_folder, progress=True)
    captured = capsys.readouterr()
    assert "3/3" in captured.err and not captured.out


# Real data


@needs_data
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_coco_passes(split):
    root = DATA / "coco2017_mini"
    names = ["person", "toothbrush"]
    file = root / "annotations" / f"instances_{split}.json"
    report = check_coco(file, root / split, classes=names, decode=True)
    assert report.ok, str(report)
    expected = {"train2017": (210, 1784, 18, 1), "val2017": (90, 786, 10, 0)}[split]
    keys = ("images", "annotations", "crowds", "images_without_objects")
    assert tuple(report.facts[key] for key in keys) == expected


@needs_data
@pytest.mark.parametrize("name, num_classes", [("ade20k_samples", 150), ("coco_sem133", 133), ("camvid", 11)])
def test_real_label_maps_pass(name, num_classes):
    report = check_ade(DATA / name, num_classes)
    assert report.ok, str(report)
    assert not check_ade(DATA / name, num_classes // 2).ok


@needs_data
def test_camvid_pixel_shares_are_those_of_its_readme():
    share = check_ade(DATA / "camvid", 11, splits=["training"]).facts["pixel_share"]["training"]
    assert share[4] == pytest.approx(0.32, abs=0.005)  # road
    assert share[11] == pytest.approx(0.003, abs=0.0005)  # bicyclist


@needs_data
def test_real_images_pass():
    report = check_images(DATA / "pretrain_index" / "index.txt", root=DATA, decode=False)
    assert report.ok, str(report)
    assert report.facts["images"] == 1445
