"""Images of extreme shapes, batches of several sizes, data sets of one image or of nothing that can be used."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from arm_images.errors import DataError
from arm_toolkit.engine import launch
from arm_toolkit.errors import ConfigError
from tests.helpers.runs import det_config, seg_config, train
from tests.helpers.tools import own_globals

rng = np.random.default_rng(0)


def write_coco(folder: Path, split: str, sizes: list[tuple[int, int]]) -> None:
    """Images of these sizes (width, height), each with one object in its left half."""
    (folder / f"{split}2017").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number, (w, h) in enumerate(sizes, 1):
        Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).save(folder / f"{split}2017/{w}x{h}.png")
        images.append(dict(id=number, file_name=f"{w}x{h}.png", width=w, height=h))
        half = max(w // 2, 1)
        annotations.append(
            dict(id=number, image_id=number, category_id=1, bbox=[0, 0, half, h], area=half * h, iscrowd=0,
                 segmentation=[[0, 0, half, 0, half, h, 0, h]])
        )  # fmt: skip
    categories = [dict(id=n, name=name) for n, name in enumerate(("disc", "square", "triangle"), 1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


def write_ade(folder: Path, split: str, sizes: list[tuple[int, int]]) -> None:
    for kind in ("images", "annotations"):
        shutil.rmtree(folder / kind / split, ignore_errors=True)
        (folder / kind / split).mkdir(parents=True)
    for w, h in sizes:
        image = rng.integers(0, 255, (h, w, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"images/{split}/{w}x{h}.jpg")
        Image.fromarray(image[..., 0] % 4 + 1).save(folder / f"annotations/{split}/{w}x{h}.png")


WRITE = dict(det=write_coco, seg=write_ade)
CONFIG = dict(det=det_config, seg=seg_config)
NAMES = dict(det=("train", "val"), seg=("training", "validation"))


@pytest.fixture
def data(shapes, tmp_path) -> Path:
    shutil.copytree(shapes, tmp_path / "data")
    return tmp_path / "data"


def write(data: Path, task: str, sizes: list[tuple[int, int]], validation: bool = False) -> None:
    WRITE[task](data / dict(det="coco", seg="ade")[task], NAMES[task][validation], sizes)


def config(data: Path, task: str, validate: bool = False) -> Config:
    """A training of two iterations of two images."""
    cfg = CONFIG[task](data, validate=validate)
    cfg.train_dataloader.batch_size = 2
    if task == "det":
        cfg.train_dataloader.dataset.update(indices=4, filter_cfg=None)
        cfg.train_cfg.update(max_epochs=1, val_interval=1, val_begin=1)
    else:
        cfg.train_cfg.update(max_iters=2, val_interval=2, val_begin=1)
    return cfg


@pytest.fixture(scope="module")
def checkpoint(shapes, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each task, trained for two iterations."""
    found = {}
    for task, name in dict(det="epoch_1.pth", seg="iter_2.pth").items():
        cfg = config(shapes, task)
        if task == "seg":
            cfg.default_hooks.checkpoint.interval = 2
        run = tmp_path_factory.mktemp(task) / "run"
        train(cfg, run)
        found[task] = run / name
    return found


def evaluate(cfg: Config, checkpoint: Path, folder: Path, **options) -> dict:
    arguments = dict(out=None, show_dir=None, tta=False, dtype="float32", check=False, launcher="none", local_rank=0)
    arguments |= options
    args = argparse.Namespace(checkpoint=str(checkpoint), work_dir=str(folder / "test"), **arguments)
    with own_globals():
        return launch.test(cfg, args, "test")


# Extreme images


@pytest.mark.slow
@pytest.mark.parametrize("task", CONFIG)
def test_test_images_of_extreme_shapes_are_evaluated(task, data, checkpoint, tmp_path):
    """row_28: resized by the detector; by the segmentor at their own size, and in tiles below."""
    small = [(1, 1), (2, 190), (150, 1)]
    write(data, task, small if task == "det" else [*small, (2000, 1), (1, 2000), (10000, 50)], validation=True)
    metrics = evaluate(config(data, task), checkpoint[task], tmp_path)
    assert 0 <= metrics["coco/bbox_mAP" if task == "det" else "aAcc"] <= 100


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[(1, 1), (10000, 50), (37, 8000)], [(40, 30), (2000, 1)]], ids=str)
def test_resized_test_images_of_extreme_shapes(sizes, data, checkpoint, tmp_path):
    """row_28: an image that would have no pixel after resizing is named."""
    write(data, "seg", sizes, validation=True)
    cfg = config(data, "seg")
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type="Resize", scale=(192, 96), keep_ratio=True))
    cfg.model.test_cfg = dict(mode="slide", crop_size=(96, 96), stride=(64, 64))
    if (2000, 1) not in sizes:
        assert 0 <= evaluate(cfg, checkpoint["seg"], tmp_path)["aAcc"] <= 100
        return
    with pytest.raises(DataError, match=r"2000x1.jpg \(2000x1 pixels\): Resize fails .*; correct the arguments"):
        evaluate(cfg, checkpoint["seg"], tmp_path)


@pytest.mark.slow
def test_a_panorama_that_a_small_scale_leaves_without_a_pixel(data, checkpoint, tmp_path):
    """row_28: in detection, where the test images are resized to 96 pixels."""
    write(data, "det", [(40, 30), (10000, 50)], validation=True)
    with pytest.raises(DataError, match=r"10000x50.png \(10000x50 pixels\): Resize fails"):
        evaluate(config(data, "det"), checkpoint["det"], tmp_path)


@pytest.mark.parametrize("task", CONFIG)
def test_training_images_of_extreme_shapes(task, data, tmp_path):
    """1x1, one pixel high or wide, and long images train with flips, crops and padding."""
    write(data, task, [(1, 1), (1, 90), (300, 1), (2, 700)])
    cfg = config(data, task)
    flip = next(step for step in cfg.train_dataloader.dataset.pipeline if step["type"] == "RandomFlip")
    flip.update(prob=1.0)
    runner = train(cfg, tmp_path / "run")
    assert runner.iter == 2
    assert all(parameter.isfinite().all() for parameter in runner.model.parameters())


@pytest.mark.slow
def test_resized_training_images_of_extreme_shapes_are_named(data, tmp_path):
    write(data, "seg", [(1500, 1), (1600, 1)])
    cfg = config(data, "seg")
    resize = dict(type="RandomResize", scale=(100, 50), ratio_range=(0.5, 2.0), keep_ratio=True)
    cfg.train_dataloader.dataset.pipeline.insert(3, resize)
    with pytest.raises(DataError, match=r"1[56]00x1.jpg \(1[56]00x1 pixels\): RandomResize fails"):
        train(cfg, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.pth"))


@pytest.mark.slow
def test_label_maps_of_extreme_shapes_are_saved_and_drawn(data, checkpoint, tmp_path):
    """Each has the size of its image (one of 90x1 was saved as 1x90); an image of one pixel is drawn or named."""
    write(data, "seg", [(1, 1), (90, 1), (1, 50), (20, 10)], validation=True)
    evaluate(
        config(data, "seg"), checkpoint["seg"], tmp_path, out=str(tmp_path / "out"), show_dir=str(tmp_path / "show")
    )
    sizes = {file.stem: Image.open(file).size for file in (tmp_path / "out").iterdir()}
    assert sizes == {f"{w}x{h}": (w, h) for w, h in [(1, 1), (90, 1), (1, 50), (20, 10)]}
    assert any("20x10" in file.name for file in (tmp_path / "show").rglob("*.png"))


@pytest.mark.slow
def test_two_test_images_of_one_name_are_not_saved_as_one(data, checkpoint, tmp_path):
    write(data, "seg", [(90, 20)], validation=True)
    for kind in ("images", "annotations"):
        (file,) = (data / "ade" / kind / "validation").iterdir()
        (file.parent / "below").mkdir()
        shutil.copy(file, file.parent / "below")
    with pytest.raises(DataError, match="out/90x20.png would hold the prediction of .*90x20.jpg and then"):
        evaluate(config(data, "seg"), checkpoint["seg"], tmp_path, out=str(tmp_path / "out"))


# Batches


@pytest.mark.parametrize("task", CONFIG)
def test_a_validation_batch_of_two_sizes(task, data, tmp_path):
    """row_28: mmdet pads a batch; mmseg does not, which is said with the names, and the training is kept."""
    write(data, task, [(96, 64), (80, 90)], validation=True)
    cfg = config(data, task, validate=True)
    cfg.val_dataloader.batch_size = 2
    if task == "det":
        train(cfg, tmp_path / "run")
        return
    cfg.default_hooks.checkpoint.interval = 1
    with pytest.raises(ConfigError) as caught:
        train(cfg, tmp_path / "run")
    assert "val_dataloader.batch_size=2: " in str(caught.value) and "\n" not in str(caught.value)
    for part in ("80x90.jpg has 80x90 pixels", "96x64.jpg 96x64", "set val_dataloader.batch_size=1"):
        assert part in str(caught.value)
    assert (tmp_path / "run/iter_2.pth").is_file()


def test_a_training_batch_of_two_sizes(data, tmp_path):
    write(data, "seg", [(120, 100), (130, 110)])
    cfg = config(data, "seg")
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [step for step in pipeline if step["type"] != "RandomCrop"]
    with pytest.raises(ConfigError, match=r"^train_dataloader.batch_size=2: .*jpg has 1[23]0x1[01]0 .*RandomCrop"):
        train(cfg, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("task", CONFIG)
def test_a_batch_of_several_channels(task, data, tmp_path):
    """color_type="unchanged" leaves greyscale with one channel and transparency with four."""
    write(data, task, [(96, 96), (90, 96)])
    file = next((data / dict(det="coco/train2017", seg="ade/images/training")[task]).glob("90x96.*"))
    Image.open(file).convert("L").save(file)
    cfg = config(data, task)
    next(s for s in cfg.train_dataloader.dataset.pipeline if s["type"] == "LoadImageFromFile").color_type = "unchanged"
    if task == "seg":  # a step that takes three channels only
        cfg.train_dataloader.dataset.pipeline.pop(5)
    with pytest.raises(ConfigError, match=f"^train_dataloader: .*{file.name} has 1 channels, but .*color_type='color'"):
        train(cfg, tmp_path / "run")


# Nothing that can be used


@pytest.mark.slow
def test_skipping_where_no_image_can_be_read(data, tmp_path):
    """row_28: mmengine's "Cannot find valid image after 1000!"."""
    folder = data / "coco/train2017"
    for file in folder.iterdir():
        file.write_bytes(b"")
    cfg = config(data, "det")
    cfg.train_dataloader.dataset.pipeline[1].on_error = "skip"
    words = f"^image {folder}/.* cannot be read .*, the last of 100 images in a row that cannot be read"
    with pytest.raises(DataError, match=words):
        train(cfg, tmp_path / "run")


FILTER = dict(type="mmdet.FilterAnnotations", min_gt_bbox_wh=(500, 500))


def test_a_transform_that_leaves_out_every_image_is_named(data, tmp_path):
    """row_28: a filter that no object passes."""
    cfg = config(data, "det")
    cfg.train_dataloader.dataset.max_refetch = 20
    cfg.train_dataloader.dataset.pipeline.insert(3, FILTER)
    with pytest.raises(DataError, match="FilterAnnotations leaves it out, as 21 images in a row .*; correct the arg"):
        train(cfg, tmp_path / "run")


@pytest.mark.slow
def test_an_image_that_an_evaluation_would_leave_out_is_named(data, checkpoint, tmp_path):
    cfg = config(data, "det")
    cfg.test_dataloader.dataset.pipeline.insert(3, FILTER)
    with pytest.raises(DataError, match=r"\.jpg \(96x96 pixels\): FilterAnnotations leaves it out, which no eval"):
        evaluate(cfg, checkpoint["det"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("task", CONFIG)
def test_a_data_set_of_one_image(task, data, tmp_path):
    """It trains and is evaluated, also with more images per batch than there are."""
    write(data, task, [(96, 90)])
    write(data, task, [(96, 90)], validation=True)
    cfg = config(data, task, validate=True)
    cfg.train_dataloader.batch_size = 4
    assert train(cfg, tmp_path / "run").iter == (1 if task == "det" else 2)


@pytest.mark.slow
def test_a_validation_set_of_nothing(data, tmp_path):
    cfg = config(data, "det", validate=True)
    cfg.val_dataloader.dataset.indices = 0
    with pytest.raises(DataError, match="^val_dataloader: the data set is empty; check"):
        train(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_detector_that_detects_nothing_has_ap_0(data, tmp_path):
    """mmdet's metric then has no score, and no best checkpoint is kept."""
    cfg = config(data, "det", validate=True)
    cfg.model.test_cfg.rcnn.score_thr = 1.0
    cfg.default_hooks.checkpoint.save_best = "coco/bbox_mAP"
    runner = train(cfg, tmp_path / "run")
    assert runner.message_hub.get_scalar("val/coco/bbox_mAP").current() == 0
    state = torch.load(next((tmp_path / "run").glob("best_*.pth")), weights_only=True)
    assert state["state_dict"]
