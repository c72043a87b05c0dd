"""Labels follow class names; data sets, heads, label loading, evaluators and checkpoints agree, or nothing runs."""

import json
import shutil
from pathlib import Path

import pytest

from arm_toolkit.datasets.annotations import read_coco
from arm_toolkit.datasets.coco import ARMCocoDataset
from arm_toolkit.engine.check_classes import check_checkpoint_classes, check_classes, use_checked_data
from arm_toolkit.errors import ConfigError
from arm_toolkit.evaluation.coco import ARMCocoMetric
from tests.helpers.json_files import change_json
from tests.helpers.runs import det_config, seg_config

LOADERS = ("train_dataloader", "val_dataloader")
CLASSES = ("disc", "square", "triangle")
VAL = "coco/annotations/instances_val2017.json"


@pytest.fixture
def data(shapes, tmp_path) -> Path:
    shutil.copytree(shapes, tmp_path / "data")
    return tmp_path / "data"


def dataset_of(file: Path, classes=CLASSES) -> ARMCocoDataset:
    return ARMCocoDataset(
        ann_file=str(file), metainfo=dict(classes=classes), data_prefix=dict(img=""), pipeline=[], test_mode=True
    )


def names_of_labels(file: Path) -> list[list[str]]:
    dataset = dataset_of(file)
    return [[CLASSES[i["bbox_label"]] for i in dataset.get_data_info(n)["instances"]] for n in range(len(dataset))]


def test_labels_follow_names_when_the_file_lists_categories_in_another_order(data):
    """row_3"""
    before = names_of_labels(data / VAL)
    change_json(data / VAL, lambda content: content["categories"].reverse())
    assert names_of_labels(data / VAL) == before
    cfg = det_config(data, validate=True)
    check_classes(cfg, LOADERS)


def perfect(file: Path, dataset: ARMCocoDataset, classwise: bool = False, first: int | None = None) -> dict:
    """The AP of predictions that equal the truth."""
    import torch

    metric = ARMCocoMetric(ann_file=str(file), metric="bbox", classwise=classwise)
    metric.dataset_meta = dataset.metainfo
    for n in range(len(dataset))[:first]:
        info = dataset.get_data_info(n)
        boxes = torch.tensor([i["bbox"] for i in info["instances"]], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([i["bbox_label"] for i in info["instances"]], dtype=torch.long)
        prediction = dict(bboxes=boxes, labels=labels, scores=torch.ones(len(labels)))
        metric.process({}, [dict(img_id=info["img_id"], ori_shape=(96, 96), pred_instances=prediction)])
    return metric.evaluate(len(dataset) if first is None else first)


@pytest.mark.parametrize("plant", ["order", "id 0", "text ids", "no area", "area 0", "no iscrowd", "one image"])
def test_perfect_predictions_have_ap_1(plant, data):
    """row_3, row_10, row_13, row_22, row_29"""

    def edit(content):
        if plant == "order":
            content["categories"].reverse()
        for number, annotation in enumerate(content["annotations"]):
            annotation["id"] = {"id 0": number, "text ids": f"a{number}"}.get(plant, annotation["id"])
            if plant == "no area":
                del annotation["area"]
            if plant == "area 0":
                annotation["area"] = 0
            if plant == "no iscrowd":
                del annotation["iscrowd"]

    file = change_json(data / VAL, edit)
    result = perfect(file, dataset_of(file), first=1 if plant == "one image" else None)
    assert result["coco/bbox_mAP"] == 1.0


def test_rows_by_class_have_the_right_names_in_any_order(data):
    """row_3: pycocotools sorts category ids, mmdet names the rows in the order of the classes."""
    classes = tuple(reversed(CLASSES))
    change_json(data / VAL, lambda content: content["annotations"].sort(key=lambda a: a["category_id"]))
    dataset = dataset_of(data / VAL, classes)
    metric_file = change_json(data / VAL, lambda content: None)
    result = perfect(metric_file, dataset, classwise=True)
    assert all(result[f"coco/{name}_precision"] == 1.0 for name in classes)


DISAGREEMENTS = {
    "row_7 box head": ("det", {"model.roi_head.bbox_head.num_classes": 2}, "model.roi_head.bbox_head.num_classes=2"),
    "row_7 mask head": ("det", {"model.roi_head.mask_head.num_classes": 4}, "model.roi_head.mask_head.num_classes=4"),
    "row_3 order of validation": (
        "det",
        {"val_dataloader.dataset.metainfo.classes": ("square", "disc", "triangle")},
        "val_dataloader.dataset.metainfo.classes: square, disc",
    ),
    "one text": ("det", {"train_dataloader.dataset.metainfo.classes": "disc"}, "is one text"),
    "a name twice": ("det", {"train_dataloader.dataset.metainfo.classes": ("disc",) * 3}, "more than once"),
    "row_4 evaluator": ("det", {"val_evaluator.ann_file": "TRAIN"}, "the data set that it evaluates"),
    "row_6 fewer names": ("seg", {"classes": ("background", "disc", "square")}, "has 3 classes"),
    "row_6 auxiliary head": ("seg", {"model.auxiliary_head.num_classes": 5}, "model.auxiliary_head.num_classes=5"),
    "row_6 label loading": ("seg", {"train_dataloader.dataset.pipeline.2.num_classes": 5}, "pipeline.2.num_classes=5"),
    "zero label": ("seg", {"val_dataloader.dataset.reduce_zero_label": False}, "reduce_zero_label=False"),
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_parts_that_disagree_about_classes_do_not_run(what, shapes):
    kind, options, says = DISAGREEMENTS[what]
    cfg = {"det": det_config, "seg": seg_config}[kind](shapes, validate=True)
    classes = options.get("classes")
    if classes:
        options = {f"{loader}.dataset.metainfo.classes": classes for loader in LOADERS}
    train_file = str(shapes / "coco/annotations/instances_train2017.json")
    cfg.merge_from_dict({key: train_file if value == "TRAIN" else value for key, value in options.items()})
    with pytest.raises(ConfigError) as caught:
        check_classes(cfg, LOADERS)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_head_that_does_not_say_its_number_has_the_default(shapes):
    """row_7: mmdet's heads have 80 classes by default."""
    cfg = det_config(shapes, validate=True)
    del cfg.model.roi_head.bbox_head["num_classes"]
    with pytest.raises(ConfigError, match="bbox_head.num_classes=80, but .* has 3 classes"):
        check_classes(cfg, LOADERS)


def test_an_evaluator_without_a_file_reads_that_of_its_data_set(shapes):
    """row_4"""
    cfg = det_config(shapes, validate=True)
    file = cfg.val_evaluator.pop("ann_file")
    check_classes(cfg, LOADERS)
    assert Path(cfg.val_evaluator.ann_file) == Path(file)
    use_checked_data(cfg)
    assert cfg.val_evaluator.type == "ARMCocoMetric" and cfg.train_dataloader.dataset.type == "ARMCocoDataset"


def test_a_checkpoint_of_other_classes_is_refused(data):
    """row_3"""
    dataset = dataset_of(data / VAL)
    check_checkpoint_classes("a.pth", dict(dataset_meta=dict(classes=list(CLASSES))), dataset, "test_dataloader")
    with pytest.raises(ConfigError, match="classes is disc, square, triangle, but a.pth was trained with square"):
        meta = dict(dataset_meta=dict(classes=("square", "disc", "triangle")))
        check_checkpoint_classes("a.pth", meta, dataset, "test_dataloader")


def test_areas_are_those_of_the_masks(data):
    """row_13"""
    original = {a["id"]: a["area"] for a in json.loads((data / VAL).read_text())["annotations"]}
    change_json(data / VAL, lambda content: [a.update(area=0) for a in content["annotations"]])
    content, report = read_coco(data / VAL)
    assert {a["id"]: a["area"] for a in content["annotations"]} == original
    assert "computed" in report.facts["repairs"][0]
