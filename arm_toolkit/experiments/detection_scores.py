"""Judges the objects that a detector found: AP by pycocotools, matches at IoU 0.5, images.

Legend: C classes, N objects found in an image, M true objects in it.
"""

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from arm_images.errors import DataError

from .detections import Objects, found_objects, read_results, read_truth, true_objects
from .figures import Panel, draw_objects
from .files import read_image
from .runs import Run
from .scores import Confusion, Scores, shrink

KINDS = {"bbox": "box AP", "segm": "mask AP"}  # what pycocotools evaluates -> measure
MATCHED = 0.5  # IoU of a found object and the true one that it counts for
BACKGROUND = "background"
DRAWN = 40  # objects in an image, those with the highest scores


@dataclass(frozen=True)
class DetectionScores(Scores):
    """Results of a detector.

    Attributes:
        min_score: objects with less are neither matched nor drawn.
        curves: (IoU, measure) -> precision in percent at the recalls 0, 1, ..., 100 percent, (101, C), nan for a class
            without objects.
        coco: the truth.
        results: image id -> entries found.
        ids: of the N images.
        folder: of the image files.
        categories: category id -> label.
    """

    min_score: float = 0.5
    curves: dict[tuple[float, str], np.ndarray] = field(default_factory=dict)
    coco: COCO | None = None
    results: dict[int, list[dict]] = field(default_factory=dict)
    ids: Sequence[int] = ()
    folder: Path = Path()
    categories: dict[int, int] = field(default_factory=dict)

    def truth_panels(self, index: int) -> list[Panel]:
        return [self._panel(index, "truth", true_objects(self.coco, self.ids[index], self.categories))]

    def panels(self, index: int, title: str, alone: bool) -> list[Panel]:
        entries = sorted(self.results[self.ids[index]], key=lambda entry: -entry["score"])[:DRAWN]
        return [self._panel(index, title, found_objects(entries, self.categories, self.min_score))]

    def ratio(self, index: int) -> float:
        image = self.coco.imgs[self.ids[index]]
        return image["height"] / image["width"]

    def caption(self, index: int) -> str:
        counts = self._match(index)
        right, matched = counts.diagonal()[:-1].sum(), counts[:-1, :-1].sum()
        numbers = {"right": right, "of a wrong class": matched - right}
        numbers |= {"missed": counts[:-1, -1].sum(), "where there is none": counts[-1, :-1].sum()}
        return ", ".join(f"{number} {what}" for what, number in numbers.items() if number)

    def _match(self, index: int) -> np.ndarray:
        image = self.ids[index]
        return match(self.coco.imgToAnns[image], self.results[image], self.categories, self.min_score)

    def _panel(self, index: int, title: str, objects: Objects) -> Panel:
        image = self.coco.imgs[self.ids[index]]
        file = self.folder / image["file_name"]
        pixels = read_image(file)
        if pixels.shape[:2] != (image["height"], image["width"]):
            raise DataError(f"{file} has another size than the annotation file states")
        small = shrink(pixels)
        scale = np.tile([small.shape[1] / pixels.shape[1], small.shape[0] / pixels.shape[0]], 2)
        shown = Objects(objects.labels, objects.boxes * scale, [shrink(m) for m in objects.masks], objects.scores)
        return Panel(title, lambda axes: draw_objects(axes, small, shown, self.classes))


def detection_scores(run: Run, predictions: Path) -> DetectionScores:
    """Compare results in COCO's format with the annotations of the run's test set.

    Raises:
        DataError: if the annotations or the results cannot be read; names the file.
    """
    data = run.test_set
    root = Path(data.get("data_root") or "")
    if not data.get("ann_file"):
        raise DataError(f"the configuration of {run.folder} names no test_dataloader.dataset.ann_file")
    coco = read_truth(root / data["ann_file"])
    results = read_results(predictions, coco)
    ids = {category["name"]: category["id"] for category in coco.dataset["categories"]}
    classes = list(run.settings("test_dataloader", "dataset", "metainfo").get("classes") or ids)
    absent = [name for name in classes if name not in ids]
    if absent:
        raise DataError(f"{root / data['ann_file']} has no category {', '.join(absent)}, which the run was tested on")
    categories = {ids[name]: label for label, name in enumerate(classes)}
    entries = [entry for of_image in results.values() for entry in of_image]
    kinds = ["bbox"]
    if entries and all("segmentation" in entry for entry in entries):
        kinds += ["segm"] * all("segmentation" in annotation for annotation in coco.anns.values())
    print(f"evaluating {len(entries)} objects in {len(coco.imgs)} images", file=sys.stderr, flush=True)
    by_class, curves, evaluation = {}, {}, None
    for kind in kinds:
        found = _evaluate(coco, entries, kind, categories)
        precision = _precision(found, categories, coco)  # (IoUs, recalls, C)
        by_class[KINDS[kind]] = 100 * precision.mean((0, 1))
        for position, limit in ((0, 0.5), (5, 0.75)):
            curves[limit, KINDS[kind]] = 100 * precision[position]
        evaluation = evaluation or found
    min_score = best_threshold(evaluation)
    images = list(coco.imgs)
    counts, of_images, amounts = np.zeros((len(classes) + 1, len(classes) + 1), np.int64), [], []
    for image in images:
        of_image = match(coco.imgToAnns[image], results[image], categories, min_score)
        counts += of_image
        of_images.append(f1(of_image))
        amounts.append(of_image.sum())
    if not counts[:-1].any():
        raise DataError(f"{root / data['ann_file']} has no object of the classes {', '.join(classes)}")
    empty = sum(not results[image] for image in images)
    how = (
        f"Objects with a score of at least {min_score:.2f}, the score with the highest F1 over all objects. In the"
        " order of their scores each takes the free true object, of any class, that its box overlaps most (IoU at least"
        f" {MATCHED}). Last row: found where no true object is. Last column: true objects that are missed."
    )
    return DetectionScores(
        classes,
        {measure: float(np.nanmean(values)) for measure, values in by_class.items()},
        by_class,
        "objects",
        counts[:-1].sum(1),
        Confusion(counts, [*classes, BACKGROUND], [*classes, "missed"], "objects", how),
        [coco.imgs[image]["file_name"] for image in images],
        f"F1 of the objects with a score of at least {min_score:.2f}, at IoU {MATCHED}",
        np.array(of_images),
        np.array(amounts),
        [f"In {empty} of {len(images)} images nothing is found."] if empty else [],
        min_score=min_score,
        curves=curves,
        coco=coco,
        results=results,
        ids=images,
        folder=root / (run.settings("test_dataloader", "dataset", "data_prefix").get("img") or ""),
        categories=categories,
    )


def match(truth: Sequence[dict], entries: Sequence[dict], categories: dict[int, int], min_score: float) -> np.ndarray:
    """Counts of true (row) and found class (column), (C + 1, C + 1), in an image.

    The last row counts objects that are found where none is, the last column true objects that are missed. What lies in
    a crowd region (half of its box or more) counts nowhere unless it is a true object.

    Args:
        truth: annotations.
        entries: results.
        categories: category id -> label; others count nowhere.
    """
    count = len(categories)
    counts = np.zeros((count + 1, count + 1), np.int64)
    truth = [annotation for annotation in truth if annotation["category_id"] in categories]
    crowds = np.array([annotation["iscrowd"] > 0 for annotation in truth], bool)
    labels = [categories[annotation["category_id"]] for annotation in truth]
    entries = [e for e in entries if e["score"] >= min_score and e["category_id"] in categories]
    entries.sort(key=lambda entry: -entry["score"])
    overlaps = np.zeros((len(entries), len(truth)))
    if truth and entries:
        boxes = [np.array([entry["bbox"] for entry in part], float) for part in (entries, truth)]
        overlaps = mask_utils.iou(*boxes, crowds.astype(np.uint8).tolist())  # (N, M)
    free = ~crowds
    for entry, of_entry in zip(entries, overlaps):
        found = categories[entry["category_id"]]
        candidates = np.where(free, of_entry, 0)
        if len(truth) and candidates.max() >= MATCHED:
            taken = int(candidates.argmax())
            counts[labels[taken], found] += 1
            free[taken] = False
        elif not (crowds & (of_entry >= MATCHED)).any():
            counts[-1, found] += 1
    for label in np.array(labels, int)[free]:
        counts[label, -1] += 1
    return counts


def f1(counts: np.ndarray) -> float:
    """F1 in percent of counts from `match`; nan if there is nothing to find and nothing is found."""
    right = counts.diagonal()[:-1].sum()
    total = counts[:-1].sum() + counts[:, :-1].sum()
    return 200 * right / total if total else np.nan


def best_threshold(evaluation: COCOeval | None) -> float:
    """The score with the highest F1 at IoU 0.5 over the objects of all classes; 0.5 if nothing right is found."""
    scores, right, total = [], [], 0
    images = evaluation.evalImgs if evaluation is not None else []
    everything = evaluation.params.areaRng[0] if evaluation is not None else None
    for of_image in images:
        if of_image is None or of_image["aRng"] != everything:
            continue
        judged = ~np.asarray(of_image["dtIgnore"][0], bool)
        scores.append(np.asarray(of_image["dtScores"], float)[judged])
        right.append(of_image["dtMatches"][0][judged] > 0)
        total += int((np.asarray(of_image["gtIgnore"]) == 0).sum())
    scores, right = (np.concatenate(parts) if parts else np.zeros(0) for parts in (scores, right))
    if not right.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(right[order])
    return float(scores[order][np.argmax(2 * found / (np.arange(len(order)) + 1 + total))])


def _evaluate(coco: COCO, entries: Sequence[dict], kind: str, categories: dict[int, int]) -> COCOeval | None:
    """pycocotools' evaluation, which prints nothing; None if nothing is found."""
    if not entries:
        return None
    unused = {"segm": "bbox", "bbox": "segmentation"}[kind]  # with a box pycocotools takes its area for the mask's
    entries = [{key: value for key, value in entry.items() if key != unused} for entry in entries]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(entries), kind)
        evaluation.params.catIds = sorted(categories)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _precision(evaluation: COCOeval | None, categories: dict[int, int], coco: COCO) -> np.ndarray:
    """Precision (0..1) at 10 IoUs and 101 recalls, (10, 101, C); nan for a class without objects."""
    if evaluation is None:
        precision = np.zeros((10, 101, len(categories)))
        objects = {a["category_id"] for a in coco.anns.values() if not a["iscrowd"]}
        precision[:, :, [label for category, label in categories.items() if category not in objects]] = np.nan
        return precision
    order = [categories[category] for category in evaluation.params.catIds]
    found = evaluation.eval["precision"][:, :, :, 0, -1]  # all sizes, 100 objects in an image
    precision = np.empty_like(found)
    precision[:, :, order] = found
    return np.where(precision < 0, np.nan, precision)
