"""Reads the objects of images: the truth from a COCO file, predictions from results in COCO's format.

Nothing is unpickled: the files may come from somebody else.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from arm_images.errors import DataError

from ..datasets.annotations import read_coco
from ..datasets.segmentations import segmentation_fault
from .files import read_json

_KEYS = {"image_id", "category_id", "bbox", "score"}


@dataclass(frozen=True)
class Objects:
    """N instances in one image.

    Attributes:
        labels: N indices into the list of class names.
        boxes: (N, 4): left, top, right, bottom in pixels.
        masks: N arrays (H, W) bool; none if there are boxes only.
        scores: N values in 0..1, or None for the truth.
    """

    labels: Sequence[int]
    boxes: np.ndarray
    masks: Sequence[np.ndarray]
    scores: Sequence[float] | None = None


def read_truth(path: Path) -> COCO:
    """The index of a COCO annotation file.

    Raises:
        DataError: if the file has a fault; names it.
    """
    return coco_index(read_coco(path, masks=False)[0])


def coco_index(content: dict) -> COCO:
    """pycocotools' index of annotations that `read_coco` has checked; prints nothing."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def true_objects(coco: COCO, image_id: int, labels: dict[int, int]) -> Objects:
    """The objects of an image in an annotation file.

    Args:
        labels: category id -> label; objects of other categories are left out.
    """
    annotations = [a for a in coco.imgToAnns[image_id] if a["category_id"] in labels]
    return Objects(
        [labels[annotation["category_id"]] for annotation in annotations],
        _corners([annotation["bbox"] for annotation in annotations]),
        [coco.annToMask(a) > 0 for a in annotations if a.get("segmentation")],
    )


def read_results(path: Path, coco: COCO) -> dict[int, list[dict]]:
    """Image id -> its entries in a file of results in COCO's format, [] for an image without any.

    Raises:
        DataError: if the file is incomplete, an entry is none, or it belongs to another annotation file.
    """
    entries = read_json(path)
    results: dict[int, list[dict]] = {image: [] for image in coco.imgs}
    if not isinstance(entries, list):
        raise DataError(f"{path} is not a list of results in COCO's format; make it with tools/test.py --out {path}")
    for position, entry in enumerate(entries):
        fault = _fault(entry, coco)
        if fault:
            raise DataError(f"{path}: entry {position} {fault}; make the file again with tools/test.py --out {path}")
        results[entry["image_id"]].append(entry)
    return results


def _fault(entry: object, coco: COCO) -> str:
    """Why an entry cannot be evaluated; "" if it can."""
    if not isinstance(entry, dict) or not entry.keys() >= _KEYS:
        return f"lacks one of the keys {', '.join(sorted(_KEYS))}"
    for key, known in (("image_id", coco.imgs), ("category_id", coco.cats)):
        if not isinstance(entry[key], int | str) or entry[key] not in known:
            return f"has {key} {entry[key]!r}, which the annotation file of the test set does not have"
    numbers = [entry["score"], *entry["bbox"]] if isinstance(entry["bbox"], list) else []
    if len(numbers) != 5 or not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
        return "has no box of four numbers and a score"
    if "segmentation" in entry:
        image, mask = coco.imgs[entry["image_id"]], entry["segmentation"]
        if not isinstance(mask, dict) or segmentation_fault(mask, image["width"], image["height"]):
            return "has a segmentation that is not in run lengths of the image's size"
    return ""


def found_objects(entries: Sequence[dict], labels: dict[int, int], min_score: float) -> Objects:
    """The objects of an image that have at least `min_score`, the best last: it is drawn on top.

    Args:
        entries: of one image, from `read_results`.
        labels: category id -> label; objects of other categories are left out.
    """
    kept = [entry for entry in entries if entry["score"] >= min_score and entry["category_id"] in labels]
    kept.sort(key=lambda entry: entry["score"])
    return Objects(
        [labels[entry["category_id"]] for entry in kept],
        _corners([entry["bbox"] for entry in kept]),
        [mask_utils.decode(_packed(entry["segmentation"])) > 0 for entry in kept if "segmentation" in entry],
        [float(entry["score"]) for entry in kept],
    )


def _packed(mask: dict) -> dict:
    """Run lengths as pycocotools decodes them."""
    return mask_utils.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask


def _corners(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Boxes given by left, top, width and height as left, top, right and bottom, (N, 4)."""
    corners = np.array(boxes, float).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return corners
