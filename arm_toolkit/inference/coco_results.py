"""Detections in COCO's results format, with the ids of an annotation file if there is one.

Legend: n objects, H x W pixels.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from arm_images.errors import DataError

from ..datasets.annotations import read_coco
from ..datasets.coco_results import result_entries
from .inputs import Input
from .results import DetectionResult


class CocoIds:
    """Ids of images and categories.

    Without an annotation file images are numbered from 1 in the order of the inputs, and categories from 1 in the order
    of the classes. With one, the ids are the file's: images are found by their file names, categories by their names.

    Args:
        inputs: the images; videos have no ids.
        classes: names of the model's classes.
        file: annotation file in COCO's format.

    Attributes:
        images: by the input's name: id, file_name and, with an annotation file, width and height.
        categories: id and name of each class, in the order of the classes.

    Raises:
        DataError: if the file lacks an image or a class, or two inputs are one of its images.
    """

    def __init__(self, inputs: Iterable[Input], classes: tuple[str, ...], file: str | Path | None = None) -> None:
        images = [given for given in inputs if not given.is_video]
        if file is None:
            self.categories = [dict(id=number, name=name) for number, name in enumerate(classes, 1)]
            self.images = {
                given.name: dict(id=number, file_name=str(given.path)) for number, given in enumerate(images, 1)
            }
            return
        content, _ = read_coco(file, masks=False, images_only=True)
        ids = {category["name"]: category["id"] for category in content["categories"]}
        absent = [name for name in classes if name not in ids]
        if absent:
            raise DataError(f"{file} has no category {absent[0]!r}, a class of the model; it has {', '.join(ids)}")
        self.categories = [dict(id=ids[name], name=name) for name in classes]
        self.images = _match(images, content["images"], str(file))

    def check_size(self, given: Input, size: tuple[int, int]) -> None:
        """Check that an image (H, W) has the size that the annotation file states.

        Raises:
            DataError: naming the image and both sizes.
        """
        entry = self.images[given.name]
        stated = entry.get("height", size[0]), entry.get("width", size[1])
        if stated != tuple(size):
            raise DataError(
                f"{given.path} has {size[1]}x{size[0]} pixels, but the annotation file states {stated[1]}x{stated[0]}; "
                "give the images that it was made for"
            )

    def entries(self, result: DetectionResult, image: dict) -> list[dict]:
        """The objects of an image as pycocotools' `loadRes` takes them.

        Args:
            image: what every entry says about its image, as `image_id`.
        """
        ids = [category["id"] for category in self.categories]
        return result_entries(image, ids, result.boxes, result.scores, result.labels, result.masks)


def _match(images: list[Input], entries: list[dict], file: str) -> dict[str, dict]:
    """For each input's name the entry whose file name its path ends with."""
    by_name: dict[str, list[dict]] = {}
    for entry in entries:
        by_name.setdefault(Path(entry["file_name"]).name, []).append(entry)
    matched, absent = {}, []
    inputs: dict[object, Input] = {}
    for given in images:
        parts = given.path.absolute().parts
        fitting = [entry for entry in by_name.get(parts[-1], ()) if _ends_with(parts, _parts(entry))]
        if not fitting:
            absent.append(given.path)
            continue
        entry = max(fitting, key=lambda entry: len(_parts(entry)))
        other = inputs.setdefault(entry["id"], given)
        if other is not given:
            raise DataError(
                f"{other.path} and {given.path} are both {entry['file_name']!r} of {file}; predict one of them"
            )
        matched[given.name] = {key: entry[key] for key in ("id", "file_name", "width", "height")}
    if absent:
        raise DataError(
            f"{file} does not list {len(absent)} of the {len(images)} images, first {absent[0]}; its first file_name "
            f"is {entries[0]['file_name']!r}: give the images that it lists, or omit --annotations"
        )
    return matched


def _parts(entry: dict) -> tuple[str, ...]:
    """The parts of a file name, without what leads out of its folder."""
    return tuple(part for part in Path(os.path.normpath(entry["file_name"])).parts if part not in ("..", os.sep))


def _ends_with(path: tuple[str, ...], end: tuple[str, ...]) -> bool:
    return path[-len(end) :] == end
