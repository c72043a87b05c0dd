"""Loading images and checking labels, with errors that name the file."""

import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from .errors import DataError


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmcv's loading from file (BGR, uint8; greyscale becomes three channels) that never passes an error by in silence.

    Args:
        on_error: "raise" stops with the file's name; "skip" warns with the file's name and leaves the image out
            (training draws another one instead; a test set cannot be evaluated with images left out, so there it stops
            all the same).
    """

    def __init__(self, on_error: str = "raise", **kwargs) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: give 'raise' or 'skip'")
        super().__init__(**kwargs)
        self.on_error = on_error

    def transform(self, results: dict) -> dict | None:
        path = results["img_path"]
        try:
            return super().transform(results)
        except FileNotFoundError:
            problem = f"image {path} does not exist; check data_root and data_prefix"
        except Exception as error:  # noqa: BLE001 whatever a decoder throws
            problem = (
                f"image {path} cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            )
        if self.on_error == "raise":
            raise DataError(f"{problem}; repair it, or set on_error='skip' in LoadImage to train without it")
        print_log(f"left out: {problem}", logger="current", level=30)
        return None


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):
    """After LoadAnnotations of a segmentation pipeline: every label is a class or the ignored value.

    Args:
        num_classes: labels must be below it.
        ignore_index: the one value above that is allowed.

    Raises:
        DataError: naming the file and the label.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def transform(self, results: dict) -> dict:
        labels = results["gt_seg_map"]
        wrong = labels[(labels >= self.num_classes) & (labels != self.ignore_index)]
        if wrong.size:
            shift = int(bool(results.get("reduce_zero_label")))
            raise DataError(
                f"{results['seg_map_path']} holds the label {int(np.max(wrong)) + shift}, but there are "
                f"{self.num_classes} classes ({'stored from 1, 0 ignored' if shift else 'stored from 0'}, "
                f"{self.ignore_index} "
                "ignored); correct the file, or num_classes and the data set's classes"
            )
        return results
