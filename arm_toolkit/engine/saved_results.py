"""Saves the predictions of a test, each file whole: `--out` and `--show-dir` of tools/test.py."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.evaluator import BaseMetric, DumpResults
from mmengine.fileio import dump
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS
from PIL import Image

from arm_backbone.checkpoint.writing import replacing

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
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for sample in data_samples:
            labels = sample["pred_sem_seg"]["data"].squeeze().cpu().numpy()
            if sample.get("reduce_zero_label"):
                labels = labels + 1  # as in the files that were read
            name = f"{Path(sample['img_path']).stem}.png"
            with replacing(self.folder / name) as partial:
                Image.fromarray(labels.astype(np.uint8)).save(partial, format="png")
            self.results.append(name)

    def compute_metrics(self, results: list) -> dict:
        return {}


@HOOKS.register_module()
class WholeDrawingsHook(Hook):
    """Writes the drawings of mmdet's and mmseg's visualization hooks whole; one that cannot be written is an error.

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
            finally:
                visualizer.add_image = add_image

        visualizer.add_datasample = whole
