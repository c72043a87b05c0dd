"""Data sets without a labelled pixel or an object, and images that a data set leaves out."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from PIL import Image

from arm_images.errors import DataError
from arm_toolkit.datasets.coco import ARMCocoDataset
from arm_toolkit.datasets.shapes import CLASSES
from arm_toolkit.engine.batches_hook import BatchesHook
from tests.helpers.json_files import change_json
from tests.helpers.runs import det_config, seg_config, train
from tests.helpers.tools import own_globals


@pytest.fixture
def ade(shapes, tmp_path) -> Path:
    shutil.copytree(shapes / "ade", tmp_path / "data/ade")
    return tmp_path / "data/ade"


def config(ade: Path, iterations: int = 2, validate: bool = False) -> Config:
    cfg = seg_config(ade.parent, validate=validate)
    cfg.train_cfg.max_iters = iterations
    return cfg


def maps(ade: Path, split: str = "training") -> list[Path]:
    return sorted((ade / "annotations" / split).iterdir())


def write(files: list[Path], values, where=...) -> None:
    """Give label maps the values, in turn; with `where` only there, and 0, which is ignored, elsewhere."""
    for file in files:
        labels = np.zeros((96, 96), np.uint8)
        labels[where] = np.resize(np.array(values, np.uint8), labels[where].shape)
        Image.fromarray(labels).save(file)


def log_of(folder: Path) -> str:
    return "".join(file.read_text() for file in folder.glob("*/*.log"))


# Nothing to learn from


@pytest.mark.parametrize(
    ("split", "values"), [("training", (0, 255)), ("training", (255,)), ("validation", (0, 255)), ("validation", (0,))]
)
def test_a_split_of_ignored_pixels_stops_before_the_first_batch(ade, tmp_path, split, values):
    """row_5: label maps of 0 and 255 with reduce_zero_label=True, of training and of validation."""
    write(maps(ade, split), values)
    loader, count = dict(training=("train_dataloader", 16), validation=("val_dataloader", 6))[split]
    stored = ", ".join(map(str, values))
    with pytest.raises(
        DataError, match=f"^{loader}: no labelled pixel in {count} .*000.png, holds the values {stored}:"
    ):
        train(config(ade, validate=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batches_of_ignored_pixels_stop_the_training(ade, tmp_path):
    """row_5: the only labelled image is never drawn; stops after 2 of 2 batches, in a long training after 20."""
    write(maps(ade)[:-1], (0, 255))
    cfg = config(ade)
    cfg.train_dataloader.sampler.shuffle = False
    with pytest.raises(DataError, match="no labelled pixel in 8 label maps.*reduce_zero_label=False$"):
        train(cfg, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.pth"))


@pytest.mark.slow
def test_crops_that_miss_the_labels_are_a_warning(ade, tmp_path):
    """row_5: every label map has one labelled pixel, and the crops are small."""
    write(maps(ade), (3,), where=(-1, -1))
    cfg = config(ade)
    crop = next(step for step in cfg.train_dataloader.dataset.pipeline if step["type"] == "RandomCrop")
    crop.update(crop_size=(8, 8))
    train(cfg, tmp_path / "run")
    assert "no labelled pixel in the first 2 batches, although the data set has some" in log_of(tmp_path / "run")


@pytest.mark.slow
def test_crops_that_miss_the_objects_are_a_warning(shapes, tmp_path):
    """In detection: one small object in a corner of each image, and small crops."""
    shutil.copytree(shapes / "coco", tmp_path / "data/coco")

    def change(content: dict) -> None:
        for annotation in content["annotations"]:
            annotation.update(bbox=[0, 0, 2, 2], segmentation=[[0, 0, 2, 0, 2, 2, 0, 2]])

    change_json(tmp_path / "data/coco/annotations/instances_train2017.json", change)
    cfg = det_config(tmp_path / "data")
    cfg.train_cfg.max_epochs = 1
    cfg.train_dataloader.dataset.indices = 4
    next(step for step in cfg.train_dataloader.dataset.pipeline if step["type"] == "RandomCrop").update(
        crop_size=(8, 8)
    )
    train(cfg, tmp_path / "run")
    assert "no object in the first 2 batches, although the data set has some" in log_of(tmp_path / "run")


def test_an_ignored_image_among_others_is_normal(ade, tmp_path):
    write(maps(ade)[:2], (255,))
    write(maps(ade, "validation")[:1], (0,))
    cfg = config(ade)
    cfg.train_dataloader.update(batch_size=2)
    cfg.train_dataloader.sampler.shuffle = False  # the first batch has no labelled pixel
    runner = train(cfg, tmp_path / "run")
    assert runner.iter == 2 and "no labelled pixel" not in log_of(tmp_path / "run")


@pytest.mark.slow
def test_crowds_of_all_classes_stop_before_the_first_batch(shapes, tmp_path):
    """The file has single objects, but of another category than the configuration's classes."""
    shutil.copytree(shapes / "coco", tmp_path / "data/coco")

    def change(content: dict) -> None:
        content["categories"].append(dict(id=77, name="other"))
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1
        content["annotations"][0].update(iscrowd=0, category_id=77)

    for split in ("train", "val"):
        change_json(tmp_path / f"data/coco/annotations/instances_{split}2017.json", change)
    with pytest.raises(DataError, match="^train_dataloader: .*train2017.json has no single object of the classes in 1"):
        train(det_config(tmp_path / "data", validate=True), tmp_path / "run")


NAN = float("nan")


@pytest.mark.parametrize(
    ("metrics", "ok"),
    [
        (dict(aAcc=NAN, mIoU=NAN, mAcc=NAN), False),
        ({"coco/bbox_mAP": -1.0, "coco/bbox_mAP_50": -1.0, "coco/disc_precision": NAN}, False),
        (dict(aAcc=0.0, mIoU=NAN), True),
        ({"coco/bbox_mAP": 0.0, "coco/bbox_mAP_s": -1.0}, True),
        ({}, True),
    ],
)
def test_an_evaluation_without_a_score_is_an_error(metrics, ok):
    """row_5: whatever else the evaluator ignores."""
    if ok:
        BatchesHook().after_val_epoch(None, metrics)
        return
    with pytest.raises(DataError, match=f"^{next(iter(metrics))} is (nan|-1.0): .*reduce_zero_label"):
        BatchesHook().after_test_epoch(None, metrics)


# Left out


def test_images_under_min_size_are_counted_in_the_log(shapes, tmp_path):
    """row_15: detection leaves out small images, and says how many."""
    file = tmp_path / "train.json"
    shutil.copy(shapes / "coco/annotations/instances_train2017.json", file)

    def shrink(content: dict) -> None:
        for image in content["images"][:3]:
            image.update(width=20, height=20)
        small = {image["id"] for image in content["images"][:3]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in small]

    change_json(file, shrink)
    with own_globals():
        MMLogger.get_instance("row_15", log_file=str(tmp_path / "log.txt"))
        found = ARMCocoDataset(
            ann_file=str(file), metainfo=dict(classes=CLASSES), data_prefix=dict(img=""), pipeline=[],
            filter_cfg=dict(filter_empty_gt=False, min_size=32),
        )  # fmt: skip
    assert len(found) == 13
    assert "train.json: 13 of 16 images used (3 smaller than 32 pixels, 0 without" in (tmp_path / "log.txt").read_text()
