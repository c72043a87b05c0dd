"""Saves the predictions of a detector's test as one whole file; needs mmdet."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmdet.evaluation import DumpDetResults
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from arm_backbone.checkpoint.writing import replacing
from arm_images.errors import DataError

from ..datasets.annotations import read_categories
from ..datasets.coco_results import result_entries
from .saved_results import SaveResults


@METRICS.register_module()
class SaveInstances(SaveResults, DumpDetResults):
    """mmdet's DumpDetResults (masks as run lengths) that keeps an earlier file until the new one is complete."""


@METRICS.register_module()
class SaveCocoResults(BaseMetric):
    """Saves the instances in COCO's results format, which pycocotools and other programs read: a JSON list.

    An entry holds image_id, category_id, bbox (left, top, width, height in pixels) and score (0..1), and of models with
    masks segmentation (run lengths).

    Args:
        file: where to.
        ann_file: the COCO file whose ids the entries hold.

    Raises:
        DataError: if the file lacks a class of the data set.
    """

    def __init__(self, file: str, ann_file: str) -> None:
        super().__init__()
        self.file, self.ann_file = file, ann_file
        self._ids: list[int] = []  # of the categories, by label

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        if not self._ids:
            self._ids = self._category_ids()
        for sample in data_samples:
            found = sample["pred_instances"]
            values = [_array(found[key]) for key in ("bboxes", "scores", "labels")]
            masks = found.get("masks")
            masks = masks if masks is None or isinstance(masks, list) else _array(masks)
            entries = result_entries(dict(image_id=sample["img_id"]), self._ids, *values, masks)
            self.results.append(entries)  # one item for each image: mmengine drops what is beyond their number

    def compute_metrics(self, results: list[list[dict]]) -> dict:
        with replacing(self.file) as partial, open(partial, "w") as file:
            json.dump([entry for entries in results for entry in entries], file)
        return {}

    def _category_ids(self) -> list[int]:
        ids = {category.get("name"): category.get("id") for category in read_categories(Path(self.ann_file))}
        absent = [name for name in self.dataset_meta["classes"] if name not in ids]
        if absent:
            raise DataError(
                f"{self.ann_file} has no category {', '.join(absent)}; correct metainfo.classes or the file"
            )
        return [ids[name] for name in self.dataset_meta["classes"]]


def _array(values: object) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
