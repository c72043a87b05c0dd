"""Saves the predictions of a test, each file whole: `--out` and `--show-dir` of tools/test.py."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric, DumpResults
from mmengine.fileio import dump
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, METRICS
from PIL import Image

from arm_backbone.checkpoint.writing import replacing
from arm_images.errors import DataError

from ..datasets.class_images import find_class_images
from ..errors import one_line, user_errors
from .logs import write_image


@METRICS.register_module()
class SaveResults(DumpResults):
    """mmengine's DumpResults that keeps an earlier file until the new one is complete."""

    def compute_metrics(self, results: list) -> dict:
        with replacing(self.out_file_path) as partial, open(partial, "wb") as file:
            dump(results, file, file_format="pkl")
        return {}


@METRICS.register_module()
class SaveLabelMaps(BaseMetric):
    """Saves the predicted label maps as PNG files with the images' names, as mmseg's IoUMetric does.

    Args:
        folder: where to; it is made if it does not exist.

    Raises:
        DataError: for two images of one name, in different folders or with different endings.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)
        self._images: dict[str, str] = {}  # by the name of the label map

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            labels = sample["pred_sem_seg"]["data"][0].cpu().numpy()  # (H, W)
            if sample.get("reduce_zero_label"):
                labels = labels + 1  # as in the files that were read
            name = f"{Path(sample['img_path']).stem}.png"
            self._require_one(self._images, name, sample["img_path"])
            with replacing(self.folder / name) as partial:
                Image.fromarray(labels.astype(np.uint8)).save(partial, format="png")
            self.results.append((name, sample["img_path"]))

    def compute_metrics(self, results: list) -> dict:
        images: dict[str, str] = {}
        for name, image in results:  # of all processes
            self._require_one(images, name, image)
        return {}

    def _require_one(self, images: dict[str, str], name: str, image: str) -> None:
        other = images.setdefault(name, image)
        if other != image:
            raise DataError(
                f"{self.folder / name} would hold the prediction of {other} and then that of {image}; rename one of "
                "the images, or test them apart"
            )


@METRICS.register_module()
class SaveClassScores(BaseMetric):
    """Saves what a classifier says of each image, as JSON: dict(classes=[...], images=[...]).

    An item of `images`, in the order of the test, holds `label`, `probability` (of that class), `top` (pairs of class
    and probability of the five most likely), and `file`, relative to the split's folder, if the data set is a
    ClassFolder.

    Args:
        file: where to.
        class_folder: `data_root`, `split`, `classes_from` and `ann_file` of a ClassFolder.
    """

    def __init__(self, file: str, class_folder: dict | None = None) -> None:
        super().__init__()
        self.file, self.class_folder = file, class_folder

    def process(self, data_batch: dict, data_samples: Sequence[torch.Tensor]) -> None:
        for logits, label in zip(data_samples, data_batch["data_samples"], strict=True):
            probabilities = logits.float().softmax(0).cpu()
            values, classes = probabilities.topk(min(5, len(probabilities)))
            image = dict(label=int(label), probability=float(probabilities[int(label)]))
            self.results.append(image | dict(top=list(zip(classes.tolist(), values.tolist()))))

    def compute_metrics(self, results: list[dict]) -> dict:
        if self.class_folder is not None:
            where = dict(self.class_folder)
            root, listed = Path(where.pop("data_root")), where.pop("ann_file", "")
            images = find_class_images(root, **where, listed=root / listed if listed else None)
            files = [str(file.relative_to(images.found.source)) for file in images.found.files]
            results = [dict(file=file) | result for file, result in zip(files, results, strict=True)]
        with replacing(self.file) as partial, open(partial, "w") as file:
            json.dump(dict(classes=list(self.dataset_meta["classes"]), images=results), file)
        return {}


@HOOKS.register_module()
class WholeDrawingsHook(Hook):
    """Writes the drawings of mmdet's and mmseg's visualization hooks whole; one that cannot be written is an error.

    An image that cannot be drawn (in mmseg, one of one pixel) is a warning.

    Replaces `add_datasample` of the run's visualizer while a test runs: mmseg ignores a failure, mmdet leaves half a
    file.

    Args:
        folder: of drawings that the hook gives no file name (mmseg's).
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def before_test(self, runner) -> None:
        visualizer = runner.visualizer
        add_datasample, add_image = visualizer.add_datasample, visualizer.add_image

        def whole(name: str, *args, out_file: str | None = None, step: int = 0, **kwargs) -> None:
            path = Path(out_file) if out_file else self.folder / f"{name}_{step}.png"
            visualizer.add_image = lambda name, image, step=0: write_image(path, image)
            try:
                add_datasample(name, *args, step=step, **kwargs)
            except user_errors():
                raise
            except Exception as error:  # noqa: BLE001 drawing is another program's code
                print_log(
                    f"{path} is not drawn ({type(error).__name__}: {one_line(error)})", "current", logging.WARNING
                )
            finally:
                visualizer.add_image = add_image

        visualizer.add_datasample = whole
