"""Judges the label maps that a segmentor predicted: IoU by mmseg's code, confusion matrix, images.

Legend: C classes, H x W pixels.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Patch
from mmengine.registry import DATASETS, DefaultScope
from mmengine.utils import ProgressBar
from mmseg.evaluation import IoUMetric

from arm_images.errors import DataError
from arm_images.read import read_labels, reason

from ..datasets.label_maps import IGNORED, class_numbers
from ..datasets.segmentation import CheckedPairs
from ..datasets.transforms import LoadLabels
from ..engine.check_classes import OURS
from ..engine.config_text import buildable
from ..errors import ConfigError, one_line
from .figures import Panel, draw_labels, draw_mistakes, label_colours, label_handles
from .files import read_image, read_pixels
from .runs import Run
from .scores import Confusion, Scores, shrink
from .style import CLASS_COLOURS, hues

LEGEND = 9  # classes in the legend of an image, the largest


@dataclass(frozen=True)
class Pair:
    """An image with the label map of the truth and the predicted one.

    Attributes:
        item: what mmseg's data set says of it: img_path, seg_map_path and how labels are stored.
    """

    item: dict
    predicted: Path

    def read(self, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Class numbers of truth and prediction, (H, W) uint8; `IGNORED` in the truth is not judged.

        Raises:
            DataError: for a file that cannot be read, a wrong label or a wrong size; names the file.
        """
        truth = LoadLabels(classes).transform(dict(self.item, seg_fields=[]))["gt_seg_map"]
        try:
            stored = read_labels(self.predicted)
        except Exception as error:  # noqa: BLE001 a decoder can raise anything
            raise DataError(f"{self.predicted} cannot be read ({reason(error)}); predict again") from None
        found = class_numbers(stored, bool(self.item.get("reduce_zero_label")))
        wrong = found[found >= classes]
        if found.shape != truth.shape or wrong.size:
            what = f"the label {wrong.max()}" if wrong.size else f"{found.shape[1]}x{found.shape[0]} pixels"
            raise DataError(
                f"{self.predicted} holds {what}, its truth {truth.shape[1]}x{truth.shape[0]} pixels of {classes} "
                "classes; predict again"
            )
        return truth, found


@dataclass(frozen=True)
class SegmentationScores(Scores):
    """Results of a segmentor.

    Attributes:
        pairs: the N images.
        colours: of the classes.
    """

    pairs: Sequence[Pair] = ()
    colours: Sequence[str] = ()

    def truth_panels(self, index: int) -> list[Panel]:
        image = self._image(index)
        labels, _ = self._labels(index)
        return [
            Panel("image", lambda axes: axes.imshow(image)),
            Panel("truth", lambda axes: draw_labels(axes, labels, self.colours)),
        ]

    def panels(self, index: int, title: str, alone: bool) -> list[Panel]:
        image = self._image(index)
        truth, found = self._labels(index)
        ignored = truth == 0
        panels = [Panel(title, lambda axes: draw_labels(axes, found, self.colours))]
        if alone:
            wrong = (truth != found) & ~ignored
            panels.append(Panel("mistakes", lambda axes: draw_mistakes(axes, image, wrong, ignored)))
        return panels

    def ratio(self, index: int) -> float:
        height, width = self._image(index).shape[:2]
        return height / width

    def caption(self, index: int) -> str:
        truth, found = self._labels(index)
        wrong = (truth != found) & (truth > 0)
        pairs, counts = np.unique(np.stack([truth[wrong], found[wrong]]), axis=1, return_counts=True)
        if not len(counts):
            return "no mistake"
        true, taken = (self.classes[label - 1] for label in pairs[:, counts.argmax()])
        return f"most frequent mistake: {true} taken for {taken}"

    def legend(self, index: int) -> Sequence[Patch]:
        labels, counts = np.unique(np.stack(self._labels(index)), return_counts=True)
        largest = [label for label in labels[np.argsort(-counts)] if label > 0][:LEGEND]
        shown = sorted(largest)
        return label_handles([self.classes[k - 1] for k in shown], [self.colours[k - 1] for k in shown])

    def _image(self, index: int) -> np.ndarray:
        return shrink(read_image(Path(self.pairs[index].item["img_path"])))

    def _labels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Truth and prediction as figures draw them: 0 is ignored, k is the k-th class."""
        truth, found = map(shrink, self.pairs[index].read(len(self.classes)))
        return np.where(truth == IGNORED, 0, truth + 1), found + 1


def segmentation_scores(run: Run, predictions: Path) -> SegmentationScores:
    """Compare the label maps in a folder with the truth of the run's test set; shows a progress bar on stderr.

    Raises:
        DataError, ConfigError: if the data set or a prediction cannot be read; names file or key.
    """
    data = _data_set(run)
    classes, items = list(data.metainfo["classes"]), data.load_data_list()
    pairs = [Pair(item, predictions / f"{Path(item['img_path']).stem}.png") for item in items]
    absent = [pair.predicted for pair in pairs if not pair.predicted.is_file()]
    if len(absent) == len(pairs):
        raise DataError(f"{predictions} holds no prediction for an image of the test set, e.g. {absent[0].name}")
    pairs = [pair for pair in pairs if pair.predicted.is_file()]
    counts, of_images, amounts = np.zeros((len(classes), len(classes)), np.int64), [], []
    progress = ProgressBar(len(pairs), file=sys.stderr)
    for pair in pairs:
        of_image = confusion_counts(*pair.read(len(classes)), len(classes))
        counts += of_image
        present = of_image.sum(1) > 0
        of_images.append(by_mmseg(of_image)["IoU"][present].mean() if present.any() else np.nan)
        amounts.append(of_image.sum())
        progress.update()
    print(file=sys.stderr)
    if not counts.any():
        raise DataError(f"no pixel is labelled in the {len(pairs)} images whose predictions are in {predictions}")
    values = by_mmseg(counts)
    by_class = {"IoU": values["IoU"], "accuracy": values["Acc"]}
    overall = {"mIoU": float(np.nanmean(values["IoU"])), "pixel accuracy": float(values["aAcc"])}
    how = "Every labelled pixel counts once. A row adds up to 100: what the pixels of this class were taken for."
    return SegmentationScores(
        classes,
        overall,
        by_class,
        "share of pixels",
        counts.sum(1) / counts.sum(),
        Confusion(counts, classes, classes, "pixels", how),
        [Path(pair.item["img_path"]).name for pair in pairs],
        "mean IoU of the classes in the image",
        np.array(of_images),
        np.array(amounts),
        [f"{len(absent)} of {len(items)} test images have no prediction and are left out."] if absent else [],
        pairs=pairs,
        colours=_colours(data, run.test_set),
    )


def confusion_counts(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of truth (row) and prediction (column), (C, C), of two maps of class numbers; `IGNORED` is left out."""
    judged = truth != IGNORED
    pairs = truth[judged].astype(np.int64) * classes + found[judged]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def by_mmseg(counts: np.ndarray) -> dict[str, np.ndarray]:
    """What mmseg computes from a confusion matrix, in percent: IoU (C,) and Acc (C,) of each class, aAcc of all pixels.

    A class without a pixel, in truth and prediction for IoU, in the truth for Acc, is nan.
    """
    both, found, truth = (torch.from_numpy(x.astype(float)) for x in (counts.diagonal(), counts.sum(0), counts.sum(1)))
    values = IoUMetric.total_area_to_metrics(both, found + truth - both, found, truth)
    return {name: 100 * value for name, value in values.items()}


def class_iou(predictions: Path, truth: Path, classes: int, names: list[str] | None = None) -> np.ndarray | None:
    """IoU in percent of each class over all images: (classes,), nan for a class that does not occur.

    Args:
        predictions, truth: folders of label maps (PNG) with equal names. Label k is the k-th class; pixels with label 0
            in the truth are ignored.
        names: file names of the images without suffix; all files in `truth` if None.

    Returns:
        None if there is no truth, or an image has no prediction.

    Raises:
        DataError: if a prediction holds a label outside the classes.
    """
    files = sorted(truth.glob("*.png")) if names is None else [truth / f"{name}.png" for name in names]
    if not files or not all((predictions / file.name).is_file() for file in files):
        return None
    counts = np.zeros((classes, classes), np.int64)
    for file in files:
        maps = [class_numbers(read_pixels(path), zero_ignored=True) for path in (file, predictions / file.name)]
        if (maps[1][maps[0] != IGNORED] >= classes).any():
            raise DataError(f"{predictions / file.name} holds a label beyond 1 to {classes}; predict again")
        counts += confusion_counts(*maps, classes)
    return by_mmseg(counts)["IoU"]


def _data_set(run: Run) -> CheckedPairs:
    """The run's test set, which lists images and label maps as the test did; loads no image."""
    key, where = "test_dataloader.dataset", f"the configuration of {run.folder}"
    name = str(run.test_set.get("type")).removeprefix("mmseg.")
    dataset = run.test_set | dict(type=OURS.get(name, name), pipeline=[], lazy_init=True)
    with DefaultScope.overwrite_default_scope("mmseg"):
        try:
            data = DATASETS.build(buildable(dataset, key, where, scope="mmseg"))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{where}: {key} cannot be built: {one_line(error)}") from None
    if not data.metainfo.get("classes"):
        raise ConfigError(f"{where}: {key} has no metainfo.classes; the report needs the names of the classes")
    return data


def _colours(data: CheckedPairs, dataset: dict) -> list[str]:
    """The palette of the classes; else the colours of the project for few classes, and hues for many."""
    palette, count = (
        (dataset.get("metainfo") or {}).get("palette") or data.METAINFO.get("palette"),
        len(data.metainfo["classes"]),
    )
    if isinstance(palette, list | tuple) and len(palette) == count:
        return [to_hex(np.clip(np.array(colour, float)[:3] / 255, 0, 1)) for colour in palette]
    return label_colours(count) if count <= len(CLASS_COLOURS) + 1 else hues(count)
