"""Whether a data set of OpenMMLab holds anything to learn from or to evaluate on."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset

from arm_images.errors import DataError
from arm_images.read import read_labels

from .checked_pipeline import leaves
from .transforms import LoadLabels, inner_steps


def require_truth(dataset: object, where: str, ignore_index: int = 255, files: Collection[str] | None = None) -> None:
    """Check that a data set has an object or a labelled pixel; stops at the first, usually in the first image.

    Data sets without objects (as mmdet's have them) and without label maps that the pipeline loads pass.

    Args:
        where: key of the data loader.
        ignore_index: label of pixels without a class.
        files: look at these label maps only.

    Raises:
        DataError: if all objects are crowd regions or of other classes, or all pixels are ignored.
    """
    first, count = None, 0
    for part in leaves(dataset):
        maps = any(isinstance(step, LoadLabels) for step in inner_steps(part.pipeline))
        for index in range(len(part)):
            info = part.get_data_info(index)
            if not maps and "instances" not in info:
                return
            if files is not None and info.get("seg_map_path") not in files:
                continue
            if _is_labelled(info, ignore_index) if maps else _has_object(info):
                return
            first, count = first or (part, info), count + 1
    if first is None:
        return
    part, info = first
    if "instances" in info:
        raise DataError(
            f"{where}: {part.ann_file} has no single object of the classes in {count} images, only crowd regions or "
            "other categories; correct metainfo.classes or the file"
        )
    raise DataError(f"{where}: no labelled pixel in {count} label maps; {_describe(part, info['seg_map_path'])}")


def _is_labelled(info: dict, ignore_index: int) -> bool:
    labels = LoadLabels(ignore_index=ignore_index).transform({**info, "seg_fields": []})["gt_seg_map"]
    return bool((labels != ignore_index).any())


def _has_object(info: dict) -> bool:
    return any(not instance.get("ignore_flag") for instance in info["instances"])


def _describe(part: BaseDataset, file: str) -> str:
    values = np.unique(read_labels(Path(file))).tolist()
    if part.reduce_zero_label:
        remedy = "0 and 255 are ignored, and class k must be stored as k + 1"
        remedy += "; or set reduce_zero_label=False" if 0 in values else ""
    else:
        remedy = "255 is ignored, and class k must be stored as k"
    stored = ", ".join(map(str, values[:5]))
    return f"the first, {file}, holds the values {stored}: with reduce_zero_label={part.reduce_zero_label} {remedy}"
