"""Judges the classes that a classifier predicted: accuracy, confusion matrix, images.

Legend: C classes, N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arm_images.errors import DataError

from .figures import Panel, draw_probabilities
from .files import read_image, read_json
from .runs import Run
from .scores import Confusion, Scores, shrink


@dataclass(frozen=True)
class ClassificationScores(Scores):
    """Results of a classifier.

    Attributes:
        images: what tools/test.py saved of each image.
        folder: that their `file` is relative to.
    """

    images: Sequence[dict] = ()
    folder: Path = Path()

    def truth_panels(self, index: int) -> list[Panel]:
        pixels = shrink(self._pixels(index))
        return [Panel(self.classes[self.images[index]["label"]], lambda axes: axes.imshow(pixels))]

    def panels(self, index: int, title: str, alone: bool) -> list[Panel]:
        image = self.images[index]
        labels, values = zip(*image["top"][:3])
        true = labels.index(image["label"]) if image["label"] in labels else None
        names = [self.classes[label] for label in labels]
        return [Panel(title, lambda axes: draw_probabilities(axes, names, values, true))]

    def ratio(self, index: int) -> float:
        height, width = self._pixels(index).shape[:2]
        return height / width

    def caption(self, index: int) -> str:
        image = self.images[index]
        found = image["top"][0][0]
        if found == image["label"]:
            return "right"
        return f"{self.classes[image['label']]} taken for {self.classes[found]}"

    def _pixels(self, index: int) -> np.ndarray:
        return read_image(self.folder / self.images[index]["file"])


def classification_scores(run: Run, predictions: Path) -> ClassificationScores:
    """Read what `tools/test.py --out FILE.json` saved.

    Raises:
        DataError: if the file is incomplete or something else; names it.
    """
    content = read_json(predictions)
    fault = _fault(content)
    if fault:
        raise DataError(f"{predictions} {fault}; make it with tools/test.py --out {predictions}")
    classes, images = content["classes"], content["images"]
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for image in images:
        counts[image["label"], image["top"][0][0]] += 1
    overall = {"top-1 accuracy": 100 * counts.trace() / len(images)}
    if len(classes) > 5:
        among = [image["label"] in [label for label, _ in image["top"][:5]] for image in images]
        overall["top-5 accuracy"] = 100 * float(np.mean(among))
    with np.errstate(invalid="ignore"):  # 0 / 0: a class without images
        by_class = {
            "accuracy": 100 * counts.diagonal() / counts.sum(1),
            "precision": 100 * counts.diagonal() / counts.sum(0),
        }
    how = "The most likely class of each image. A row adds up to 100: what the images of this class were taken for."
    return ClassificationScores(
        classes,
        overall,
        by_class,
        "images",
        counts.sum(1),
        Confusion(counts, classes, classes, "images", how),
        [image["file"] for image in images],
        "probability of the true class",
        np.array([100 * image["probability"] for image in images]),
        np.ones(len(images)),
        images=images,
        folder=Path(run.test_set.get("data_root") or "", str(run.test_set.get("split") or "")),
    )


def _fault(content: object) -> str:
    """Why a file does not hold the results of a classifier; "" if it does."""
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("classes", "images")):
        return "does not hold the lists 'classes' and 'images'"
    classes, images = content["classes"], content["images"]
    if not images or not all(isinstance(name, str) for name in classes):
        return "holds no images or no names of classes"
    labels = range(len(classes))
    for position, image in enumerate(images):
        top = image.get("top") if isinstance(image, dict) else None
        if not isinstance(top, list) or not top:
            return f"lacks the most likely classes of image {position}"
        pairs = [(image.get("label"), image.get("probability")), *(pair for pair in top if isinstance(pair, list))]
        known = all(len(pair) == 2 and type(pair[0]) is int and pair[0] in labels for pair in pairs)
        if not known or not all(type(value) in (int, float) for _, value in pairs) or len(pairs) <= len(top):
            return f"holds an image ({position}) whose label or probabilities do not fit its classes"
        if not isinstance(image.get("file"), str):
            return f"does not name the file of image {position} (its data set is not a ClassFolder)"
    return ""
