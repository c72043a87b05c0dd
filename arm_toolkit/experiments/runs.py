"""Reads what training and testing left in work dirs."""

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor

from arm_backbone.checkpoint.files import model_state, read_checkpoint

from . import figures as draw


@dataclass(frozen=True)
class Objects:
    """Instances in one picture.

    Attributes:
        labels: N positions in the list of class names.
        boxes: (N, 4), left, top, right, bottom in pixels.
        masks: N arrays (H, W) bool.
        scores: N values in 0..1, or None for the truth.
    """

    labels: Sequence[int]
    boxes: np.ndarray
    masks: Sequence[np.ndarray]
    scores: Sequence[float] | None = None


# --- reading ---


def read_pixels(path: Path) -> np.ndarray:
    """An image file as (H, W, 3) or, for a label map, (H, W) uint8."""
    with Image.open(path) as image:
        return np.asarray(image)


def read_truth(path: Path) -> tuple[list[str], dict[str, tuple[int, Objects]]]:
    """Names of the classes; and file name -> image id and objects, from a COCO file with masks as RLE."""
    content = json.loads(path.read_text())
    order = {category["id"]: i for i, category in enumerate(content["categories"])}
    found: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append(annotation)
    truth = {image["file_name"]: (image["id"], _true_objects(found[image["id"]], order)) for image in content["images"]}
    return [category["name"] for category in content["categories"]], truth


def _true_objects(annotations: list[dict], order: dict[int, int]) -> Objects:
    boxes = np.array([annotation["bbox"] for annotation in annotations], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Objects(
        [order[annotation["category_id"]] for annotation in annotations],
        boxes,
        [mask_utils.decode(annotation["segmentation"]) > 0 for annotation in annotations],
    )


def read_detections(path: Path, min_score: float) -> dict[int, Objects]:
    """Image id -> objects of at least that score, from the pickle of tools/test.py --out.

    Unpickling can execute code: only for a file of your own.
    """
    with path.open("rb") as file:
        samples = pickle.load(file)  # noqa: S301
    return {sample["img_id"]: _found_objects(sample["pred_instances"], min_score) for sample in samples}


def _found_objects(instances: dict, min_score: float) -> Objects:
    scores = np.asarray(instances["scores"], float)
    keep = [int(i) for i in np.argsort(scores, kind="stable") if scores[i] >= min_score]  # best on top
    return Objects(
        [int(instances["labels"][i]) for i in keep],
        np.asarray(instances["bboxes"], float).reshape(-1, 4)[keep],
        [mask_utils.decode(instances["masks"][i]) > 0 for i in keep],
        [float(scores[i]) for i in keep],
    )


MEASURES = {"box AP": "coco/bbox_mAP", "mask AP": "coco/segm_mAP", "mIoU": "mIoU"}


@dataclass(frozen=True)
class Run:
    """One training and its evaluation; what is not there is None or empty.

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
        """A measure of `MEASURES` in points (0..100), rounded as it is shown."""
        value = self.metrics.get(MEASURES[measure])
        if value is None or not value >= 0:  # COCO writes -1 for "undefined"
            return None
        return round(value if measure == "mIoU" else 100 * value, 1)


# --- reading ---


def read_run(folder: Path, steps: dict) -> Run:
    """What a training left in its work dir; `steps` is the content of steps.json."""
    results = sorted((folder / "test").glob("*/*.json"))
    path = checkpoint_path(folder)
    return Run(
        folder,
        metrics=_json(results[-1]) if results else {},
        seconds=next((s["seconds"] for s in steps.get("steps", []) if s["name"] == folder.name), None),
        parameters=count_parameters(model_state(read_checkpoint(path))) if path else None,
        losses=read_losses(folder),
    )


def checkpoint_path(folder: Path) -> Path | None:
    """The last checkpoint of a work dir, also if the dir has been moved; None without one."""
    last = folder / "last_checkpoint"
    path = folder / Path(last.read_text().strip()).name if last.is_file() else None
    return path if path and path.is_file() else None


def count_parameters(state: dict[str, Tensor]) -> tuple[int, int]:
    """Number of values in all tensors of a model, and in those of its backbone."""
    backbone = sum(tensor.numel() for key, tensor in state.items() if key.startswith("backbone."))
    return sum(tensor.numel() for tensor in state.values()), backbone


def read_losses(folder: Path) -> list[tuple[int, float]]:
    """Pairs of step and loss; a training that was resumed replaces what it did again."""
    losses: dict[int, float] = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        lines = [line for line in lines if "loss" in line]
        if lines:
            losses = {step: loss for step, loss in losses.items() if step < lines[0]["step"]}
            losses |= {line["step"]: line["loss"] for line in lines}
    return sorted(losses.items())


def class_iou(predictions: Path, truth: Path, classes: int, names: list[str] | None = None) -> np.ndarray | None:
    """IoU in percent of each class over all pictures, (classes,), nan for one that is absent.

    Args:
        predictions, truth: folders of label maps (PNG) of the same names; k is the k-th class, 0
            in the truth is ignored.
        names: of the pictures, without suffix; all in `truth` when None.

    Returns:
        None if there is no truth, or a picture has no prediction.
    """
    files = sorted(truth.glob("*.png")) if names is None else [truth / f"{name}.png" for name in names]
    if not files or not all((predictions / file.name).is_file() for file in files):
        return None
    confusion = np.zeros((classes + 1, classes + 1), dtype=np.int64)  # truth, prediction
    for file in files:
        pair = draw.read_pixels(file).astype(np.int64) * (classes + 1)
        pair += draw.read_pixels(predictions / file.name)
        confusion += np.bincount(pair.ravel(), minlength=confusion.size).reshape(confusion.shape)
    confusion = confusion[1:]
    hits = confusion[:, 1:].diagonal()
    union = confusion.sum(1) + confusion[:, 1:].sum(0) - hits
    return 100 * hits / np.where(union, union, np.nan)


def _json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def _config(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.py"))), None)
