"""Transforms that load images and label maps; every error names the file.

Configurations name mmcv's and mmseg's transforms, which other programs recognise. `checked_loading` replaces them.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import mmengine.fileio
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS

from arm_images.errors import DataError
from arm_images.opencv import read_bgr
from arm_images.read import read_labels, reason, require_regular

from .label_maps import class_numbers, outside

MAX_SKIPPED = 100  # unreadable images in a row


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmcv's LoadImageFromFile that reports every decoding error. Images are upright BGR uint8, also greyscale ones.

    If the data set states an image's height and width, as COCO does, the image must have them.

    Args:
        on_error: "raise" stops and names the file. "skip" logs a warning with the file's name. Training then draws
            another image, and stops after `MAX_SKIPPED` failures in a row; testing still stops, because a test set
            cannot be evaluated in part.
        kwargs: of mmcv's LoadImageFromFile.
    """

    def __init__(self, on_error: str = "raise", **kwargs) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: give 'raise' or 'skip'")
        super().__init__(**kwargs)
        self.on_error = on_error
        self._skipped = 0  # in a row

    @property
    def stops_at_missing(self) -> bool:
        """Whether a local image that does not exist stops the run."""
        return self.on_error == "raise" and self.backend_args is None

    def transform(self, results: dict) -> dict | None:
        path = results["img_path"]
        try:
            image = self.read(path)
            _check_size(image, results)
        except FileNotFoundError:
            problem = f"image {path} does not exist; check data_root and data_prefix"
        except Exception as error:  # noqa: BLE001 a decoder can raise anything
            problem = f"image {path} cannot be read ({reason(error)})"
        else:
            results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
            self._skipped = 0
            return results
        self._skipped += 1
        if self._skipped == MAX_SKIPPED:
            raise DataError(
                f"{problem}, the last of {MAX_SKIPPED} images in a row that cannot be read; check the data set"
            )
        if self.on_error == "raise":
            raise DataError(f"{problem}; repair it, or set on_error='skip' in LoadImageFromFile to skip it")
        print_log(f"skipped: {problem}", logger="current", level=logging.WARNING)
        return None

    def read(self, path: str) -> np.ndarray:
        """Decode an image file: upright (H, W, 3), BGR. Raises whatever the decoder raises."""
        if (self.color_type, self.imdecode_backend) != ("color", "cv2"):
            return super().transform(dict(img_path=path))["img"]
        require_regular(Path(path))
        image = read_bgr(mmengine.fileio.get(path, backend_args=self.backend_args))
        return image.astype(np.float32) if self.to_float32 else image


def _check_size(image: np.ndarray, results: dict) -> None:
    height, width = image.shape[:2]
    stated = results.get("height", height), results.get("width", width)
    if stated != (height, width):
        turned = "; without its EXIF orientation it would fit" if stated == (width, height) else ""
        raise DataError(
            f"it has {width}x{height} pixels, but the annotation file states {stated[1]}x{stated[0]}{turned}"
        )


@TRANSFORMS.register_module()
class LoadLabels(BaseTransform):
    """mmseg's LoadAnnotations for label maps, which also checks their values and their size.

    Args:
        num_classes: classes are 0 to num_classes - 1; None takes any number.
        ignore_index: the only other value allowed.

    Raises:
        DataError: for a file that cannot be read, a wrong label, or another size than the image's; names the file and
            the cause.
    """

    def __init__(self, num_classes: int | None = None, ignore_index: int = 255) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def transform(self, results: dict) -> dict:
        path, zero_ignored = results["seg_map_path"], bool(results.get("reduce_zero_label"))
        try:
            labels = read_labels(Path(path))
        except FileNotFoundError:
            raise DataError(f"label map {path} does not exist; check data_root and data_prefix") from None
        except Exception as error:  # noqa: BLE001 a decoder can raise anything
            raise DataError(f"label map {path} cannot be read ({reason(error)}); repair it") from None
        size = results.get("ori_shape", labels.shape)
        if tuple(size) != labels.shape:
            raise DataError(
                f"label map {path} has {labels.shape[1]}x{labels.shape[0]} pixels, its image "
                f"{results.get('img_path')} {size[1]}x{size[0]}; both are read upright; make the sizes equal"
            )
        stored = labels = class_numbers(labels, zero_ignored)
        if results.get("label_map") is not None:
            labels = stored.copy()
            for old, new in results["label_map"].items():
                labels[stored == old] = new
        if self.num_classes is not None:
            self._check_values(labels, path, zero_ignored)
        results["gt_seg_map"] = labels
        results["seg_fields"].append("gt_seg_map")
        return results

    def _check_values(self, labels: np.ndarray, path: str, zero_ignored: bool) -> None:
        wrong = outside(labels, self.num_classes, self.ignore_index)
        if wrong.size:
            raise DataError(
                f"{path} holds the label {int(np.max(wrong)) + zero_ignored}, but there are {self.num_classes} classes "
                f"({'stored from 1, 0 ignored' if zero_ignored else 'stored from 0'}, {self.ignore_index} ignored); "
                "correct the file, or num_classes and the data set's classes"
            )


def inner_steps(step: object) -> Iterator[object]:
    """A transform or pipeline, and the transforms inside it."""
    yield step
    for inner in getattr(step, "transforms", None) or getattr(step, "subroutines", None) or ():
        yield from inner_steps(inner)


def checked_loading(loader: dict, scope: str | None) -> dict:
    """A data loader's configuration that loads with `LoadImage`, and label maps with `LoadLabels`.

    Configurations keep the names LoadImageFromFile and LoadAnnotations, which mmdet's and mmseg's clients look for.

    Args:
        loader: stays as it is.
        scope: default scope; LoadAnnotations loads label maps in mmseg's.
    """
    loader = ConfigDict(loader) if not isinstance(loader, ConfigDict) else loader
    return _checked(loader, scope, None)


def _checked(node: object, scope: str | None, num_classes: int | None) -> object:
    if isinstance(node, list | tuple):
        return type(node)(_checked(item, scope, num_classes) for item in node)
    if not isinstance(node, dict):
        return node
    if "pipeline" in node:
        num_classes = _count_classes(node, scope) or num_classes
    node = type(node)((key, _checked(value, scope, num_classes)) for key, value in node.items())
    kind = node.get("type")
    if kind in ("LoadImageFromFile", "mmcv.LoadImageFromFile"):
        node["type"] = "LoadImage"
    elif kind == "mmseg.LoadAnnotations" or kind == "LoadAnnotations" and scope == "mmseg":
        node["type"] = "LoadLabels"
        node.setdefault("num_classes", num_classes)
    return node


def _count_classes(dataset: dict, scope: str | None) -> int | None:
    classes = (dataset.get("metainfo") or {}).get("classes")
    if classes is None and isinstance(dataset.get("type"), str):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(dataset["type"])
        classes = (getattr(kind, "METAINFO", None) or {}).get("classes")
    return len(classes) if isinstance(classes, list | tuple) else None
