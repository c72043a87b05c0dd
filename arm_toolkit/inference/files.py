"""The files that a prediction writes: results in standard formats and label maps. Every file is written whole.

| task | files |
| --- | --- |
| detection | `results.json` as COCO's results (boxes, scores, masks as run lengths), `images.json` with its ids |
| segmentation | `labels/NAME.png`, and `results.json` with classes, colours, files and shares of the classes |
| classification | `results.json` and `results.csv` with the most likely classes |
"""

import csv
import json
from pathlib import Path

import numpy as np

from arm_backbone.checkpoint.writing import replacing
from arm_images.pillow import Image

from ..datasets.coco_results import run_lengths
from ..errors import ConfigError
from .coco_results import CocoIds
from .inputs import Input
from .predictor import Predictor
from .results import ClassificationResult, DetectionResult, SegmentationResult

CSV = dict(encoding="utf-8", errors="surrogateescape", newline="")  # names of files keep bytes that are not UTF-8


def write_json(path: Path, content: object) -> None:
    """Write a JSON file.

    Raises:
        WriteError: if it cannot be written; an earlier file is kept.
    """
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file, allow_nan=False)


class DetectionFiles:
    """Collects detections and writes COCO's `results.json`, and `images.json` with the ids that it uses."""

    def __init__(self, out: Path, predictor: Predictor, inputs: list[Input], annotations: str | None) -> None:
        self.out = out
        self.ids = CocoIds(inputs, predictor.classes, annotations)
        self.head = dict(categories=self.ids.categories)
        self._images: list[dict] = []
        self._entries: list[dict] = []

    def check(self, given: Input, size: tuple[int, int]) -> None:
        """Check an image (H, W) before it is predicted."""
        self.ids.check_size(given, size)

    def add(self, given: Input, result: DetectionResult) -> None:
        """Take the result of an image."""
        image = self.ids.images[given.name]
        self._images.append(image | dict(height=result.size[0], width=result.size[1]))
        self._entries += self.ids.entries(result, dict(image_id=image["id"]))

    def frame(self, result: DetectionResult) -> dict:
        """The result of a frame for JSON."""
        return dict(objects=self.ids.entries(result, {}))

    def finish(self) -> list[str]:
        """Write what was taken; returns the names of the files."""
        if not self._images:
            return []
        write_json(self.out / "results.json", self._entries)
        write_json(self.out / "images.json", dict(images=self._images, **self.head))
        return ["results.json", "images.json"]


class SegmentationFiles:
    """Writes a label map per image, 8 bits with the classes' colours as palette, and `results.json`.

    The stored values are those of the label maps that the model was trained on: where these store class k as k + 1
    (`reduce_zero_label`), so do the written ones, as with `tools/test.py --out`.
    """

    def __init__(self, out: Path, predictor: Predictor) -> None:
        self.out, self.first = out, int(predictor.reduce_zero_label)
        if len(predictor.classes) + self.first > 256:
            raise ConfigError(f"{len(predictor.classes)} classes do not fit label maps of 8 bits, which are written")
        colours = [[0, 0, 0]] * self.first + list(map(list, predictor.palette))
        self._palette = [value for colour in colours for value in colour]
        classes = zip(predictor.classes, predictor.palette)
        self.head = dict(
            classes=[
                dict(label=number, name=name, colour=list(colour))
                for number, (name, colour) in enumerate(classes, self.first)
            ]
        )
        self._images: list[dict] = []

    def check(self, given: Input, size: tuple[int, int]) -> None:
        """Any size will do."""

    def add(self, given: Input, result: SegmentationResult) -> None:
        """Write the label map of an image."""
        name = f"labels/{given.name}.png"
        image = Image.fromarray((result.labels + self.first).astype(np.uint8))
        image.putpalette(self._palette)
        with replacing(self.out / name) as partial:
            image.save(partial, format="png")
        self._images.append(dict(file=str(given.path), labels=name, shares=result.shares()))

    def frame(self, result: SegmentationResult) -> dict:
        """The result of a frame for JSON."""
        present = np.unique(result.labels)
        return dict(
            segments=[
                dict(label=int(label) + self.first, segmentation=run_lengths(result.labels == label))
                for label in present
            ]
        )

    def finish(self) -> list[str]:
        """Write what was taken; returns the names of the files."""
        if not self._images:
            return []
        write_json(self.out / "results.json", dict(self.head, images=self._images))
        return ["results.json", "labels/"]


class ClassificationFiles:
    """Collects the `top_k` most likely classes of each image, and writes `results.json` and `results.csv`."""

    def __init__(self, out: Path, predictor: Predictor, top_k: int) -> None:
        self.out, self._top_k = out, top_k
        self.head = dict(classes=list(predictor.classes))
        self._images: list[dict] = []

    def check(self, given: Input, size: tuple[int, int]) -> None:
        """Any size will do."""

    def add(self, given: Input, result: ClassificationResult) -> None:
        """Take the result of an image."""
        self._images.append(dict(file=str(given.path), **self.frame(result)))

    def frame(self, result: ClassificationResult) -> dict:
        """The result of a frame for JSON."""
        return dict(top=result.top(self._top_k))

    def finish(self) -> list[str]:
        """Write what was taken; returns the names of the files."""
        if not self._images:
            return []
        write_json(self.out / "results.json", dict(self.head, images=self._images))
        path = self.out / "results.csv"
        with replacing(path) as partial, open(partial, "w", **CSV) as file:
            table = csv.writer(file)
            ranks = range(1, len(self._images[0]["top"]) + 1)
            table.writerow(["file", *(f"{key} {rank}" for rank in ranks for key in ("class", "score"))])
            for image in self._images:
                cells = [
                    cell for label, score in image["top"] for cell in (self.head["classes"][label], f"{score:.6f}")
                ]
                table.writerow([image["file"], *cells])
        return ["results.json", "results.csv"]


Files = DetectionFiles | SegmentationFiles | ClassificationFiles


def result_files(
    out: Path, predictor: Predictor, inputs: list[Input], annotations: str | None = None, top_k: int = 5
) -> Files:
    """The files of a predictor's task.

    Raises:
        ConfigError, DataError: for annotations that do not fit the inputs or the classes, or too many classes.
    """
    if predictor.task == "detection":
        return DetectionFiles(out, predictor, inputs, annotations)
    if predictor.task == "segmentation":
        return SegmentationFiles(out, predictor)
    return ClassificationFiles(out, predictor, top_k)
