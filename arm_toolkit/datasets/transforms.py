"""Transforms that load images and label maps; every error names the file."""

import logging

import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from arm_images.errors import DataError
from arm_images.pillow import Image  # noqa: F401 importing it also keeps mmcv's Pillow from starting Ghostscript


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmcv's LoadImageFromFile that reports every decoding error. Images are BGR uint8, also greyscale ones.

    Args:
        on_error: "raise" stops and names the file. "skip" logs a warning with the file's name. Training then draws
            another image; testing still stops, because a test set cannot be evaluated in part.
        kwargs: of mmcv's LoadImageFromFile.
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
        except Exception as error:  # noqa: BLE001 a decoder can raise anything
            problem = f"image {path} cannot be read ({_reason(error)})"
        if self.on_error == "raise":
            raise DataError(f"{problem}; repair it, or set on_error='skip' in LoadImage to train without it")
        print_log(f"skipped: {problem}", logger="current", level=logging.WARNING)
        return None


@TRANSFORMS.register_module()
class LoadLabels(BaseTransform):
    """mmseg's LoadAnnotations for label maps, which also checks that every label is a class or `ignore_index`.

    Args:
        num_classes: classes are 0 to num_classes - 1.
        ignore_index: the only other value allowed.

    Raises:
        DataError: for a file that cannot be read, or a wrong label; names the file and the cause.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.load = TRANSFORMS.build(dict(type="mmseg.LoadAnnotations"))

    def transform(self, results: dict) -> dict:
        path = results["seg_map_path"]
        try:
            results = self.load(results)
        except FileNotFoundError:
            raise DataError(f"label map {path} does not exist; check data_root and data_prefix") from None
        except Exception as error:  # noqa: BLE001 a decoder can raise anything
            raise DataError(f"label map {path} cannot be read ({_reason(error)}); repair it") from None
        labels = results["gt_seg_map"]
        wrong = labels[(labels >= self.num_classes) & (labels != self.ignore_index)]
        if wrong.size:
            shift = int(bool(results.get("reduce_zero_label")))
            raise DataError(
                f"{path} holds the label {int(np.max(wrong)) + shift}, but there are {self.num_classes} classes "
                f"({'stored from 1, 0 ignored' if shift else 'stored from 0'}, {self.ignore_index} ignored); "
                "correct the file, or num_classes and the data set's classes"
            )
        return results


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
