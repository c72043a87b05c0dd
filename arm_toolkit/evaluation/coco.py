"""mmdet's CocoMetric over annotations that are checked, and over the images that were predicted."""

import logging
import tempfile
from collections.abc import Sequence

from mmdet.evaluation.metrics import CocoMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS

from arm_images.errors import DataError

from ..datasets.annotations import read_coco
from ..datasets.coco import NamedCOCO

ITEMS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")  # that mmdet reports by default


@METRICS.register_module()
class ARMCocoMetric(CocoMetric):
    """mmdet's CocoMetric with four differences; the runner builds it where a configuration names CocoMetric.

    * The file is read by `read_coco`, as for training.
    * Classes are numbered in the order of `metainfo.classes` for the evaluation: pycocotools sorts category ids, and
      mmdet's `classwise` names its rows in the order of the classes. Result files keep the file's ids.
    * Only images that were predicted are evaluated; the log says so if the file lists more.
    * Where nothing is detected, all scores are 0; mmdet gives none.
    """

    def __init__(self, ann_file: str | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.ann_file = ann_file
        if ann_file is not None:
            content, _ = read_coco(ann_file, "segm" in self.metrics, self.format_only)
            self._coco_api = NamedCOCO(content, ann_file)

    def compute_metrics(self, results: list) -> dict[str, float]:
        if self.ann_file is not None and self.cat_ids is None:
            self._number_classes()
            self._choose_images([prediction["img_id"] for _, prediction in results])
        scores = super().compute_metrics(results)
        if not scores and not self.format_only:
            print_log(f"{self.ann_file}: no object is detected in any image", logger="current", level=logging.WARNING)
            items = self.metric_items or ITEMS
            scores = {f"{metric}_{item}": 0.0 for metric in self.metrics for item in items}
        return scores

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict:
        if self.ann_file is None or self.outfile_prefix is None:
            return super().results2json(results, outfile_prefix)
        numbers, self.cat_ids = self.cat_ids, self.file_ids
        files = super().results2json(results, outfile_prefix)
        self.cat_ids = numbers
        if self.format_only:
            return files
        self._numbered = tempfile.TemporaryDirectory()  # kept until mmdet has read the files
        return super().results2json(results, f"{self._numbered.name}/results")

    def _number_classes(self) -> None:
        """Replace the annotations' category ids by 1 to C, in the order of the classes."""
        classes, content = self.dataset_meta["classes"], self._coco_api.dataset
        self.file_ids = self._coco_api.get_cat_ids(classes)
        numbers = {category: number for number, category in enumerate(self.file_ids, 1)}
        content["annotations"] = [
            {**annotation, "category_id": numbers[annotation["category_id"]]}
            for annotation in content["annotations"]
            if annotation["category_id"] in numbers
        ]
        content["categories"] = [dict(id=number, name=name) for number, name in enumerate(classes, 1)]
        self._coco_api = NamedCOCO(content, self.ann_file)
        self.cat_ids = list(numbers.values())

    def _choose_images(self, predicted: list) -> None:
        listed = self._coco_api.get_img_ids()
        unknown = set(predicted) - set(listed)
        if unknown:
            raise DataError(
                f"{self.ann_file} does not list {len(unknown)} of the predicted images (id {min(unknown, key=str)}, "
                "...); set the evaluator's ann_file to that of the data set"
            )
        chosen = set(predicted)
        self.img_ids = [image for image in listed if image in chosen]
        if len(self.img_ids) < len(listed):
            print_log(
                f"{self.ann_file}: evaluated on {len(self.img_ids)} of {len(listed)} images, those of the data set",
                logger="current",
            )
