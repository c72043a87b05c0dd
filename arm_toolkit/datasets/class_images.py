"""Finds the images of a classification data set with one folder per class, for training and for the check of data."""

from dataclasses import dataclass
from pathlib import Path

from arm_images.errors import DataError
from arm_images.find import EXPECTED, Found, image_files, is_note_of_macos


@dataclass
class ClassImages:
    """The images of one split.

    Attributes:
        classes: names in the order of their labels.
        found: the images, ordered by label, and what is left out.
        labels: one for each image.
    """

    classes: list[str]
    found: Found
    labels: list[int]


def find_class_images(root: Path, split: str, classes_from: str = "train") -> ClassImages:
    """Find the images of `root/split/CLASS/`, at any depth.

    Args:
        classes_from: the split that defines the classes: label i is its i-th folder name in sorted order.

    Raises:
        DataError: for a missing folder, a class without images, a class folder that `classes_from` lacks, or two class
            folders that are one (a link).
    """
    folder, numbered = root / split, root / classes_from
    classes, here = class_names(numbered), class_names(folder)
    unknown = sorted(set(here) - set(classes))
    if unknown:
        raise DataError(
            f"{folder / unknown[0]} is not a class: {numbered} has no such folder; add it there or remove this one"
            + _more(unknown)
        )
    _check_links(folder, here)
    images = ClassImages(classes, Found(folder), [])
    for path in sorted(folder.iterdir()):
        if path.name not in here:
            images.found.leave_out("files and folders beside the class folders", path)
    empty = []
    for label, name in enumerate(classes):
        if name not in here:
            images.found.leave_out(f"classes of {numbered} without a folder here", folder / name)
            continue
        files = image_files(folder / name, images.found)
        if not files:
            empty.append(folder / name)
        images.found.files += files
        images.labels += [label] * len(files)
    if empty:
        raise DataError(
            f"{empty[0]} is a class without an image (expected {EXPECTED}); add images or remove the folder"
            f"{_more(empty)}{images.found.remainder()}"
        )
    return images


def class_names(folder: Path) -> list[str]:
    """The names of the class folders in a folder, sorted; hidden ones and `__MACOSX` are none.

    Raises:
        DataError: if the folder does not exist, cannot be listed, or has no class folders.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; set --cfg-options data_root=PATH to a folder with train/ and val/")
    try:
        entries = [path for path in folder.iterdir() if path.is_dir()]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}); change its permissions") from None
    names = sorted(path.name for path in entries if not path.name.startswith(".") and not is_note_of_macos(path))
    if not names:
        raise DataError(f"{folder} has no class folders; it needs one folder of images per class")
    return names


def _check_links(folder: Path, names: list[str]) -> None:
    """Refuse two class folders that are one, whose images would be of two classes."""
    first: dict[tuple[int, int], str] = {}
    for name in names:
        status = (folder / name).stat()
        other = first.setdefault((status.st_dev, status.st_ino), name)
        if other != name:
            raise DataError(f"{folder / other} and {folder / name} are one folder (a link); keep one of the classes")


def _more(names: list) -> str:
    return f" ({len(names) - 1} more like it)" if len(names) > 1 else ""
