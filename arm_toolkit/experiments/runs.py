"""Reads the results of training and testing from work directories."""

import contextlib
import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmseg.evaluation import IoUMetric
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from torch import Tensor

from arm_backbone.checkpoint.files import model_state, read_checkpoint
from arm_images.errors import DataError
from arm_images.pillow import Image

MEASURES = {"box AP": "coco/bbox_mAP", "mask AP": "coco/segm_mAP", "mIoU": "mIoU"}  # shown name -> key in the results


@dataclass(frozen=True)
class Objects:
    """N instances in one image.

    Attributes:
        labels: N indices into the list of class names.
        boxes: (N, 4): left, top, right, bottom in pixels.
        masks: N arrays (H, W) bool.
        scores: N values in 0..1, or None for the truth.
    """

    labels: Sequence[int]
    boxes: np.ndarray
    masks: Sequence[np.ndarray]
    scores: Sequence[float] | None = None


@dataclass(frozen=True)
class Run:
    """One training and its evaluation; a missing part is None or empty.

    Attributes:
        metrics: AP as a fraction and mIoU in percent, as tools/test.py writes them.
        seconds: wall time of the training.
        parameters: number of values in the checkpoint, of the whole model and of its backbone.
        losses: pairs of step and loss.
    """

    folder: Path
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    parameters: tuple[int, int] | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)

    def points(self, measure: str) -> float | None:
        """One of `MEASURES` in points (0..100), rounded to one decimal as the report shows it."""
        value = self.metrics.get(MEASURES[measure])
        if value is None or not value >= 0:  # COCO writes -1 for an undefined AP
            return None
        return round(value if measure == "mIoU" else 100 * value, 1)


def read_json(path: Path) -> dict:
    """The content of a JSON file, {} if it does not exist.

    Raises:
        DataError: if the file is incomplete or not JSON.
    """
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not a complete JSON file ({error}); delete it and run again") from None


def read_run(folder: Path, steps: dict) -> Run:
    """The run in a work directory; `steps` is the content of steps.json."""
    results = sorted((folder / "test").glob("*/*.json"))
    path = checkpoint_path(folder)
    return Run(
        folder,
        metrics=read_json(results[-1]) if results else {},
        seconds=next((s["seconds"] for s in steps.get("steps", []) if s["name"] == folder.name), None),
        parameters=count_parameters(model_state(read_checkpoint(path), where=path)) if path else None,
        losses=read_losses(folder),
    )


def config_path(folder: Path) -> Path | None:
    """The configuration file that a run saved in its work directory, or None."""
    return next(iter(sorted(folder.glob("*.py"))), None)


def checkpoint_path(folder: Path) -> Path | None:
    """The last checkpoint of a work directory, found even if the directory was moved, or None."""
    last = folder / "last_checkpoint"
    path = folder / Path(last.read_text().strip()).name if last.is_file() else None
    return path if path and path.is_file() else None


def count_parameters(state: dict[str, Tensor]) -> tuple[int, int]:
    """Number of values in all tensors of a model, and in those of its backbone."""
    backbone = sum(tensor.numel() for key, tensor in state.items() if key.startswith("backbone."))
    return sum(tensor.numel() for tensor in state.values()), backbone


def read_losses(folder: Path) -> list[tuple[int, float]]:
    """Pairs of step and loss. Steps that a resumed training repeated count once, with their last loss."""
    losses: dict[int, float] = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        lines = [line for line in map(_parse_log_line, path.read_text().splitlines()) if "loss" in line]
        if lines:
            losses = {step: loss for step, loss in losses.items() if step < lines[0]["step"]}
            losses |= {line["step"]: line["loss"] for line in lines}
    return sorted(losses.items())


def _parse_log_line(line: str) -> dict:
    try:
        return json.loads(line)
    except ValueError:  # empty, or cut off when the run was killed
        return {}


def read_pixels(path: Path) -> np.ndarray:
    """An image file as (H, W, 3), or a label map as (H, W), uint8."""
    with Image.open(path) as image:
        return np.asarray(image)


def read_truth(path: Path) -> tuple[list[str], dict[str, tuple[int, Objects]]]:
    """Class names, and file name -> (image id, objects), from a COCO annotation file."""
    with contextlib.redirect_stdout(io.StringIO()):  # COCO prints its progress
        coco = COCO(path)
    categories = coco.dataset["categories"]
    labels = {category["id"]: label for label, category in enumerate(categories)}
    truth = {
        image["file_name"]: (image["id"], _true_objects(coco, image["id"], labels)) for image in coco.dataset["images"]
    }
    return [category["name"] for category in categories], truth


def _true_objects(coco: COCO, image_id: int, labels: dict[int, int]) -> Objects:
    annotations = coco.loadAnns(coco.getAnnIds(image_id))
    boxes = np.array([annotation["bbox"] for annotation in annotations], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Objects(
        [labels[annotation["category_id"]] for annotation in annotations],
        boxes,
        [coco.annToMask(annotation) > 0 for annotation in annotations],
    )


def read_detections(path: Path, min_score: float) -> dict[int, Objects]:
    """Image id -> objects with at least `min_score`, from the pickle that `tools/test.py --out` writes.

    Unpickling can execute code: only use this on a file of your own.

    Raises:
        DataError: if the file is incomplete.
    """
    try:
        with path.open("rb") as file:
            samples = pickle.load(file)  # noqa: S301
    except (pickle.UnpicklingError, EOFError) as error:
        raise DataError(f"{path} is not a complete file of predictions ({error}); run the test again") from None
    return {sample["img_id"]: _found_objects(sample["pred_instances"], min_score) for sample in samples}


def _found_objects(instances: dict, min_score: float) -> Objects:
    scores = np.asarray(instances["scores"], float)
    keep = [int(i) for i in np.argsort(scores, kind="stable") if scores[i] >= min_score]  # best last, drawn on top
    return Objects(
        [int(instances["labels"][i]) for i in keep],
        np.asarray(instances["bboxes"], float).reshape(-1, 4)[keep],
        [mask_utils.decode(instances["masks"][i]) > 0 for i in keep],
        [float(scores[i]) for i in keep],
    )


def class_iou(predictions: Path, truth: Path, classes: int, names: list[str] | None = None) -> np.ndarray | None:
    """IoU in percent of each class over all images: (classes,), nan for a class that does not occur.

    Args:
        predictions, truth: folders of label maps (PNG) with equal names. Label k is the k-th class; pixels with label 0
            in the truth are ignored.
        names: file names of the images without suffix; all files in `truth` if None.

    Returns:
        None if there is no truth, or an image has no prediction.
    """
    files = sorted(truth.glob("*.png")) if names is None else [truth / f"{name}.png" for name in names]
    if not files or not all((predictions / file.name).is_file() for file in files):
        return None
    areas = torch.zeros(4, classes, dtype=torch.float64)  # intersection, union, prediction, truth
    for file in files:
        maps = (torch.from_numpy(read_pixels(path).astype(np.int64)) for path in (predictions / file.name, file))
        counted = IoUMetric.intersect_and_union(*maps, num_classes=classes + 1, ignore_index=0)
        areas += torch.stack(counted)[:, 1:]
    return 100 * IoUMetric.total_area_to_metrics(*areas)["IoU"]
