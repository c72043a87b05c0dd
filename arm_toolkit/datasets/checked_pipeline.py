"""Runs the transforms of OpenMMLab's data sets; an image that one of them fails on, or leaves out, is named."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from mmengine.dataset import BaseDataset, Compose

from arm_images.errors import DataError
from arm_images.read import reason


class CheckedPipeline(Compose):
    """mmengine's Compose, with errors that name the image and the transform.

    Args:
        transforms: those of a Compose.
        most: images in a row that may be left out; a transform leaves one out by returning None.

    Raises:
        DataError: if a transform fails, or after `most` images in a row were left out.
    """

    def __init__(self, transforms: list, most: int) -> None:
        self.transforms, self.most = transforms, most
        self._left_out: Counter[str] = Counter()  # in a row, by transform

    def __call__(self, data: dict) -> dict | None:
        for step in self.transforms:
            before = data
            try:
                data = step(data)
            except DataError:
                raise
            except Exception as error:  # noqa: BLE001 a transform can raise anything
                raise DataError(
                    f"{_named(before)}: {type(step).__name__} fails ({type(error).__name__}: {reason(error)}); correct "
                    "the arguments of this transform, or remove the image"
                ) from error
            if data is None:
                self._leave_out(step, before)
                return None
            image = data.get("img") if isinstance(data, dict) else None
            if isinstance(image, np.ndarray) and image.flags.c_contiguous and min(image.strides) < 0:
                data["img"] = image.copy()  # one pixel wide or high and flipped: torch refuses its strides
        self._left_out.clear()
        return data

    def _leave_out(self, step: object, data: dict) -> None:
        self._left_out[type(step).__name__] += 1
        count = self._left_out.total()
        if count <= self.most:
            return
        by = ", ".join(f"{number} by {name}" for name, number in self._left_out.most_common())
        raise DataError(
            f"{_named(data)}: {type(step).__name__} leaves it out"
            + (f", as {count} images in a row were left out ({by})" if count > 1 else ", which no evaluation may")
            + "; correct the arguments of this transform (allow_negative_crop=True in a crop), or the data"
        )


def _named(data: dict) -> str:
    """The file of an image and, if it is decoded, its size."""
    shape = getattr(data.get("img"), "shape", None)
    size = f" ({shape[1]}x{shape[0]} pixels)" if shape is not None and len(shape) > 1 else ""
    return f"{data.get('img_path', 'an image')}{size}"


def check_pipelines(dataset: object) -> None:
    """Let a data set of OpenMMLab, or those inside a wrapper, run their transforms as `CheckedPipeline`."""
    for found in leaves(dataset):
        if isinstance(getattr(found, "pipeline", None), Compose):
            most = 0 if found.test_mode else found.max_refetch
            found.pipeline = CheckedPipeline(found.pipeline.transforms, most)


def leaves(dataset: object) -> Iterator[BaseDataset]:
    """The data sets of OpenMMLab in a data set, without the wrappers around them."""
    if isinstance(dataset, BaseDataset):
        yield dataset
    sliced = getattr(dataset, "_dataset", None)  # train_dataloader.num_batch_per_epoch; it passes on other attributes
    inside = [sliced] if sliced else getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    for part in inside:
        if part is not None:
            yield from leaves(part)
