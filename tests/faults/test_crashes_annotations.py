"""COCO files with faults: one error with file and ids before the first batch, the same from the check of data."""

import json
import shutil
from pathlib import Path

import pytest

from arm_images.errors import DataError
from arm_toolkit.datasets.annotations import PARTS, read_categories, read_coco
from arm_toolkit.datasets.check import check_coco
from arm_toolkit.datasets.coco import ARMCocoDataset
from tests.helpers.json_files import change_json
from tests.helpers.runs import det_config, train

NAN, INF = float("nan"), float("inf")


def first(**values):
    return lambda content: content["annotations"][0].update(values)


def without(key, part="annotations"):
    return lambda content: content[part][0].pop(key)


def every(**values):
    return lambda content: [annotation.update(values) for annotation in content["annotations"]]


FAULTS = {
    "row_21 polygon with NaN": (first(segmentation=[[1, 1, 9, 1, 9, NAN]]), "not finite"),
    "row_21 polygon far away": (first(segmentation=[[1, 1, 9, 1, 1e8, 9]]), "not finite or more than 2 image sides"),
    "row_21 polygon with inf and -inf": (first(segmentation=[[1, 1, 9, INF, 9, -INF]]), "not finite"),
    "row_21 an integer of 400 digits": (first(segmentation=[[1, 1, 9, 1, 9, 10**400]]), "not finite"),
    "row_22 no segmentation": (without("segmentation"), "no segmentation"),
    "row_22 segmentation null": (first(segmentation=None), "no segmentation"),
    "row_22 segmentation []": (first(segmentation=[]), "no segmentation"),
    "row_22 polygon of two points": (first(segmentation=[[1, 1, 9, 9]]), "no polygon of three points"),
    "row_22 flat list": (first(segmentation=[1, 1, 9, 1, 9, 9]), "flat list"),
    "odd polygon": (first(segmentation=[[1, 1, 9, 1, 9, 9, 5]]), "odd number"),
    "polygon of text": (first(segmentation=[["1", "1", "9", "1", "9", "9"]]), "no list of numbers"),
    "segmentation is text": (first(segmentation="mask.png"), "neither polygons nor run lengths"),
    "run lengths of another size": (first(segmentation=dict(size=[9, 9], counts=[81])), "another size"),
    "run lengths too short": (first(segmentation=dict(size=[96, 96], counts=[81])), "do not fill"),
    "negative run length": (first(segmentation=dict(size=[96, 96], counts=[-1, 9217])), "do not fill"),
    "compressed run lengths cut off": (first(segmentation=dict(size=[96, 96], counts="PPPPPPPo")), "do not fill"),
    "row_29 iscrowd as text": (first(iscrowd="0"), "neither 0 nor 1"),
    "row_49 box with inf": (first(bbox=[1, 1, INF, 9]), "boxes are not"),
    "row_49 box with NaN": (first(bbox=[1, NAN, 9, 9]), "boxes are not"),
    "row_49 box of 2 numbers": (first(bbox=[1, 9]), "boxes are not"),
    "row_49 box of text": (first(bbox=["1", "1", "9", "9"]), "boxes are not"),
    "row_49 box of 1e300": (first(bbox=[1, 1, 1e300, 9]), "boxes are not"),
    "no box": (without("bbox"), "boxes are not"),
    "row_49 unknown category": (first(category_id=77), "not among the categories"),
    "row_49 unknown image": (first(image_id=555), "no listed image"),
    "image id as text": (first(image_id="1000"), "no listed image"),
    "row_49 crowds only": (every(iscrowd=1), "crowd regions only"),
    "row_49 duplicate image ids": (lambda c: c["images"].append(c["images"][0]), "used more than once"),
    "duplicate annotation ids": (lambda c: c["annotations"].append(c["annotations"][0]), "used more than once"),
    "duplicate category names": (lambda c: c["categories"][1].update(name="disc"), "names of 'categories'"),
    "category id is a bool": (first(category_id=True), "no proper 'category_id'"),
    "id is a list": (first(id=[1]), "no proper 'id'"),
    "image height 0": (lambda c: c["images"][0].update(height=0), "no proper 'height'"),
    "image of 2^40 pixels": (lambda c: c["images"][0].update(height=2**20, width=2**20), "more than 2\\^30 pixels"),
    "annotation null": (lambda c: c["annotations"].append(None), "no proper 'id'"),
    "image ids of two types": (
        lambda c: [image.update(id=f"x{n}") for n, image in enumerate(c["images"]) if n],
        "some ids of 'images' are numbers and some are texts",
    ),
    "image ids above 64 bits": (lambda c: c["images"][0].update(id=2**63), "do not fit 64 bits"),
    "file_name is a list": (lambda c: c["images"][0].update(file_name=["a.jpg"]), "proper 'file_name'"),
    "annotations are a dict": (lambda c: c.update(annotations={}), "no list 'annotations'"),
}


@pytest.fixture
def coco(shapes, tmp_path) -> Path:
    shutil.copytree(shapes / "coco", tmp_path / "coco")
    return tmp_path / "coco"


def change(coco: Path, edit) -> Path:
    return change_json(coco / "annotations/instances_train2017.json", edit)


def load(file: Path) -> ARMCocoDataset:
    pipeline = [dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True)]
    classes = ("disc", "square", "triangle")
    return ARMCocoDataset(
        ann_file=str(file), metainfo=dict(classes=classes), data_prefix=dict(img=""), pipeline=pipeline
    )


@pytest.mark.parametrize("what", FAULTS)
def test_faults_are_refused_by_training_and_by_the_check(what, coco):
    edit, says = FAULTS[what]
    file = change(coco, edit)
    with pytest.raises(DataError, match=says) as caught:
        load(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    report = check_coco(file, coco / "train2017")
    assert any(error in str(caught.value) for error in report.errors)


def test_a_file_that_is_cut_off_is_refused(coco):
    """row_49"""
    file = change(coco, lambda content: None)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="is not JSON"):
        load(file)
    assert "is not JSON" in check_coco(file, coco / "train2017").errors[0]


@pytest.mark.parametrize("part", ["annotations", "categories"])
def test_a_part_that_stands_twice_is_refused(part, coco):
    """JSON readers take the last one: the objects under the first would be lost without a word."""
    file = coco / "annotations/instances_train2017.json"
    text = file.read_text()
    second = json.loads(text)[part][:2]
    file.write_text(f"{text[:-1]}, {json.dumps(part)}: {json.dumps(second)}}}")
    with pytest.raises(DataError, match=f"the key '{part}' stands twice"):
        load(file)
    assert "stands twice" in check_coco(file, coco / "train2017").errors[0]


def test_categories_of_other_parts_are_not_those_of_the_file(coco):
    content = json.loads(change(coco, lambda content: None).read_text())
    content = dict(info=dict(categories=[dict(id=1, name="x")]), **{key: content[key] for key in PARTS})
    file = coco / "annotations/instances_train2017.json"
    file.write_text(json.dumps(content))
    assert [category["name"] for category in read_categories(file)] == ["disc", "square", "triangle"]


HARMLESS = {
    "row_22 no iscrowd": without("iscrowd"),
    "row_22 no area": without("area"),
    "row_13 area 0": first(area=0),
    "area NaN": first(area=NAN),
    "area null": first(area=None),
    "area as text": first(area="12"),
    "area 1e300": first(area=1e300),
    "row_29 float ids": lambda c: [
        a.update(id=float(a["id"]), image_id=float(a["image_id"])) for a in c["annotations"]
    ],
    "row_29 text ids": lambda c: [a.update(id=f"a{a['id']}") for a in c["annotations"]],
    "row_10 ids from 0": lambda c: [a.update(id=n) for n, a in enumerate(c["annotations"])],
    "text ids of images": lambda c: (
        [i.update(id=str(i["id"])) for i in c["images"]],
        [a.update(image_id=str(a["image_id"])) for a in c["annotations"]],
    ),
    "uncompressed run lengths": first(segmentation=dict(size=[96, 96], counts=[5, 9000, 211])),
    "a degenerate polygon beside a good one": first(segmentation=[[1, 1, 9, 9], [1, 1, 9, 1, 9, 9]]),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_is_harmless_keeps_every_object(what, coco):
    before = load(change(coco, lambda content: None))
    file = change(coco, HARMLESS[what])
    after = load(file)
    assert check_coco(file, coco / "train2017").ok
    count = [sum(len(d.get_data_info(i)["instances"]) for i in range(len(d))) for d in (before, after)]
    assert count[0] == count[1] > 0
    assert all(i["ignore_flag"] == 0 for n in range(len(after)) for i in after.get_data_info(n)["instances"])


def test_boxes_alone_need_no_segmentation(coco):
    """row_22"""
    file = change(coco, lambda content: [a.pop("segmentation") for a in content["annotations"]])
    content, _ = read_coco(file, masks=False)
    assert content["annotations"]
    assert check_coco(file, coco / "train2017", masks=False).ok
    assert not check_coco(file, coco / "train2017").ok


def test_training_stops_before_its_first_batch(shapes, tmp_path):
    """row_21: through the launcher, with the configuration's CocoDataset."""
    shutil.copytree(shapes, tmp_path / "data")
    file = change(tmp_path / "data/coco", FAULTS["row_21 polygon with NaN"][0])
    with pytest.raises(DataError, match=f"train_dataloader: {file}: 1 segmentations .* annotation ids: "):
        train(det_config(tmp_path / "data"), tmp_path / "work")
    assert not (tmp_path / "work").exists()
