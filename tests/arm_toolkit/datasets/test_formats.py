"""Reading the trees of other programs: the validation split, YOLO's labels, legends, label maps, and their folders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arm_images.errors import DataError
from arm_toolkit.datasets.formats.holdout import equal_files, hold_out
from arm_toolkit.datasets.formats.legend import read_legend
from arm_toolkit.datasets.formats.recognise import recognise
from tests.helpers.trees import coco_content, stored_labels, write_masks, write_roboflow, write_yolo

# ------------------------------------------------------------------------------------------- the validation split


def test_frames_of_a_video_are_held_out_in_one_piece():
    names = [f"a_{i}.jpg" for i in range(1, 21)] + [f"b/{i}.jpg" for i in range(100, 110)]
    held = hold_out(names)
    assert held == {"a_17.jpg", "a_18.jpg", "a_19.jpg", "a_20.jpg", "b/108.jpg", "b/109.jpg"}
    assert hold_out(reversed(names)) == held  # the same, in whatever order they are given


def test_copies_stay_together(tmp_path):
    variants = [f"{i}_jpg.rf.{code}.jpg" for i in range(10) for code in ("0a", "1b", "2c")]
    held = hold_out(variants)
    assert len(held) == 6 and len({name.split("_")[0] for name in held}) == 2
    for name, content in (("1.jpg", b"x"), ("2.jpg", b"y"), ("copy.jpg", b"x"), ("3.jpg", b"zz")):
        (tmp_path / name).write_bytes(content)
    copies = equal_files([(path.name, path) for path in sorted(tmp_path.iterdir())])
    assert copies == {"copy.jpg": "1.jpg"}


@pytest.mark.parametrize("count", (2, 3, 4, 7))
def test_few_images_are_divided(count):
    held = hold_out([f"{chr(97 + i)}.jpg" for i in range(count)])
    assert 1 <= len(held) < count


# ------------------------------------------------------------------------------------------- objects


def test_yolo_polygons_are_those_of_the_coco_file(shapes, tmp_path):
    from tests.helpers.trees import outline

    data = recognise(write_yolo(shapes, tmp_path / "yolo"))
    content = coco_content(shapes, "train")
    expected = [outline(annotation) for annotation in content["annotations"]]
    found = [annotation["segmentation"][0] for annotation in data.parts["train"].content["annotations"]]
    files = {image["id"]: image["file_name"] for image in content["images"]}
    expected = sorted((files[a["image_id"]], o) for a, o in zip(content["annotations"], expected))
    files = {image["id"]: Path(image["file_name"]).name for image in data.parts["train"].content["images"]}
    found = sorted((files[a["image_id"]], a["segmentation"][0]) for a in data.parts["train"].content["annotations"])
    for (name, points), (other, others) in zip(expected, found, strict=True):
        assert name == other and np.allclose(points, others, atol=1e-3)


def test_yolo_coordinates_are_fractions_of_width_and_height(tmp_path):
    for name, colour in (("1", 0), ("2", 9)):
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (40, 20), (colour, 0, 0)).save(tmp_path / f"images/{name}.png")
        (tmp_path / f"labels/{name}.txt").write_text("0 0.5 0.5 0.5 0.4\n1 0.1 0.1 0.9 0.1 0.9 0.5\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: {0: a, 1: b}\n")
    box, polygon = recognise(tmp_path).parts["train"].content["annotations"]
    assert box["bbox"] == pytest.approx([10, 6, 20, 8]) and "segmentation" not in box
    assert polygon["segmentation"][0] == pytest.approx([4, 2, 36, 2, 36, 10])
    assert polygon["bbox"] == pytest.approx([4, 2, 32, 8]) and polygon["area"] == pytest.approx(128)


def test_yolo_boxes_are_those_that_supervision_reads(shapes, tmp_path):
    supervision = pytest.importorskip("supervision")
    root = write_yolo(shapes, tmp_path / "yolo", boxes=True)
    data = recognise(root)
    theirs = supervision.DetectionDataset.from_yolo(
        str(root / "images/val"), str(root / "labels/val"), str(root / "data.yaml")
    )
    part = data.parts["val"]
    assert data.classes == theirs.classes and not data.masks
    for image in part.content["images"]:
        ours = [a for a in part.content["annotations"] if a["image_id"] == image["id"]]
        expected = theirs.annotations[str(root / image["file_name"])]
        boxes = np.array([a["bbox"] for a in ours])
        boxes[:, 2:] += boxes[:, :2]
        assert np.allclose(boxes, expected.xyxy, atol=1e-3)
        assert [a["category_id"] - 1 for a in ours] == expected.class_id.tolist()


def test_names_from_another_machine_are_found_by_their_last_part(shapes, tmp_path):
    root = shutil.copytree(shapes / "coco", tmp_path / "coco")
    file = root / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["file_name"] = "C:\\Users\\me\\upload\\" + image["file_name"]
    file.write_text(json.dumps(content))
    data = recognise(root)
    assert data.needs_folder and any("only the last part is used" in note for note in data.notes)


def test_one_coco_file_is_divided_and_roboflows_first_category_is_no_class(shapes, tmp_path):
    root = write_roboflow(shapes, tmp_path / "export")
    assert recognise(root).classes == ["disc", "square", "triangle"]
    data = recognise(root / "train" / "_annotations.coco.json")
    assert data.counts() == dict(train=13, val=3) and data.needs_folder
    data.write(tmp_path / "out")
    assert all(report.ok for report in data.check())


def test_equal_images_in_both_splits_are_noted(shapes, tmp_path):
    root = shutil.copytree(shapes / "coco", tmp_path / "coco")
    first = min((root / "train2017").iterdir())
    shutil.copy(first, min((root / "val2017").iterdir()))
    assert any("1 images of val are training images" in note for note in recognise(root).notes)


# ------------------------------------------------------------------------------------------- label maps

LEGENDS = {
    "classes.txt": ("cat\nbig dog\n", None, None),
    "class_dict.csv": ("name,r,g,b\ncat,1,2,3\nbig dog,4,5,6\n", [(1, 2, 3), (4, 5, 6)], None),
    "label_colors.txt": ("1 2 3\tcat\n4 5 6\tbig dog\n", [(1, 2, 3), (4, 5, 6)], None),
    "labelmap.txt": ("# label:color_rgb:parts:actions\ncat:1,2,3::\nbig dog:4,5,6::\n", [(1, 2, 3), (4, 5, 6)], None),
    "_classes.csv": ("Pixel Value, Class\n0, cat\n7, big dog\n", None, [0, 7]),
    "names.json": ('{"0": "cat", "7": "big dog"}', None, [0, 7]),
    "palette.json": ('{"cat": [1, 2, 3], "big dog": [4, 5, 6]}', [(1, 2, 3), (4, 5, 6)], None),
    "meta.json": ('{"classes": ["cat", "big dog"], "palette": [[1, 2, 3], [4, 5, 6]]}', [(1, 2, 3), (4, 5, 6)], None),
    "numbered.txt": ("1 2 3 4 cat\n2 5 6 7 big dog\n", [(2, 3, 4), (5, 6, 7)], [1, 2]),
}


@pytest.mark.parametrize("name", LEGENDS)
def test_legends(name, tmp_path):
    text, colours, numbers = LEGENDS[name]
    (tmp_path / name).write_text(text)
    legend = read_legend(tmp_path / name)
    assert (legend.names, legend.colours, legend.numbers) == (["cat", "big dog"], colours, numbers)


def test_a_legend_with_a_colour_twice_is_refused(tmp_path):
    (tmp_path / "classes.csv").write_text("cat,1,2,3\ndog,1,2,3\n")
    with pytest.raises(DataError, match="classes.csv: the colour .* stands for two classes"):
        read_legend(tmp_path / "classes.csv")


@pytest.mark.parametrize("form", ("labels", "palette", "colours"))
def test_all_forms_of_label_maps_mean_the_same(form, shapes, tmp_path):
    data = recognise(write_masks(shapes, tmp_path / "data", form))
    assert data.needs_folder == (form == "colours")
    if data.needs_folder:
        data.write(tmp_path / "out")
    part = data.parts["train"]
    for image, label in part.names[:3]:
        name = Path(image).with_suffix(".png").name
        stored = stored_labels(shapes / "ade/annotations/training" / name)
        found = np.asarray(Image.open(part.labels / Path(label).name))
        assert (found == np.where(stored == 0, 255, stored - 1)).all()


def test_zero_is_ignored_where_there_are_as_many_labels_as_names(shapes, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(shapes / "ade/images", root / "images")
    shutil.copytree(shapes / "ade/annotations", root / "annotations")
    (root / "classes.txt").write_text("background\ndisc\nsquare\ntriangle\n")
    data = recognise(root)
    assert data.zero_ignored and data.classes[0] == "background" and not data.needs_folder
    (root / "classes.txt").write_text("background\ndisc\nsquare\ntriangle\nnever seen\n")
    assert not recognise(root).zero_ignored
    assert recognise(root, ignore_zero=True).zero_ignored


LAYOUTS = {
    "images/train masks/train": ("images/train", "masks/train", ""),
    "train/images train/masks": ("train/images", "train/masks", ""),
    "train trainannot": ("train", "trainannot", ""),
    "train train_labels": ("train", "train_labels", "_L"),
    "JPEGImages SegmentationClass": ("JPEGImages", "SegmentationClass", ""),
    "one folder": ("train", "train", "_mask"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_of_label_maps(layout, shapes, tmp_path):
    images, masks, suffix = LAYOUTS[layout]
    root = tmp_path / "data"
    for split in ("train", "val"):
        source = write_masks(shapes, tmp_path / split, "labels", splits=(split,))
        for folder, kind, end in ((images, "images", ""), (masks, "masks", suffix)):
            target = root / folder.replace("train", split)
            target.mkdir(parents=True, exist_ok=True)
            for file in (source / kind / split).iterdir():
                shutil.copy(file, target / f"{file.stem}{end}{file.suffix}")
    data = recognise(root)
    assert sum(data.counts().values()) == 22
    if "train" in images:
        assert data.counts() == dict(train=16, val=6)
    data.write(tmp_path / "out")
    assert all(report.ok for report in data.check()), data.check()


def test_lists_of_pascal_voc_choose_the_images(shapes, tmp_path):
    """Most images of Pascal VOC have no label map: the lists name those that have one."""
    source = write_masks(shapes, tmp_path / "source", "palette", splits=("train",))
    root = tmp_path / "VOC2012"
    shutil.copytree(source / "images/train", root / "JPEGImages")
    shutil.copytree(source / "masks/train", root / "SegmentationClass")
    names = sorted(path.stem for path in (root / "JPEGImages").iterdir())
    (root / "SegmentationClass" / f"{names[-1]}.png").unlink()
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names[:9]))
    (lists / "val.txt").write_text("\n".join(names[9:12]))
    data = recognise(root)
    assert data.counts() == dict(train=9, val=3)
    data.write(tmp_path / "out")
    assert all(report.ok for report in data.check())
    (lists / "val.txt").write_text(names[-1])
    with pytest.raises(DataError, match=f"a list of a split names {names[-1]}"):
        recognise(root)
