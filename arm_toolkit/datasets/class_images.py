"""Finds the images of a classification data set with one folder per class, for training and for the check of data."""

from dataclasses import dataclass
from pathlib import Path

from arm_images.errors import DataError
from arm_images.find import EXPECTED, Found, image_files, is_note_of_macos
from arm_images.lists import read_list
from arm_images.walk import Identity, identity


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


def find_class_images(root: Path, split: str, classes_from: str = "train", listed: Path | None = None) -> ClassImages:
    """Find the images of `root/split/CLASS/`, at any depth.

    Args:
        split: a folder's name; "" if the class folders lie in `root`.
        classes_from: the split that defines the classes: label i is its i-th folder name in sorted order.
        listed: a text file with paths relative to the split's folder, one per line; only these images are used.

    Raises:
        DataError: for a missing folder, a class without images, a class folder that `classes_from` lacks, links
            that make one folder part of two classes, or listed images that are not there.
    """
    folder, numbered = root / split, root / classes_from
    classes, here = class_names(numbered), class_names(folder)
    unknown = sorted(set(here) - set(classes))
    if unknown:
        raise DataError(
            f"{folder / unknown[0]} is not a class: {numbered} has no such folder; add it there or remove this one"
            + _more(unknown)
        )
    images = ClassImages(classes, Found(folder), [])
    for path in sorted(folder.iterdir()):
        if path.name not in here:
            images.found.leave_out("files and folders beside the class folders", path)
    by_class = images_by_class(folder, here, images.found)
    empty = [folder / name for name, files in by_class.items() if not files]
    for label, name in enumerate(classes):
        if name not in by_class:
            images.found.leave_out(f"classes of {numbered} without a folder here", folder / name)
        files = by_class.get(name, [])
        images.found.files += files
        images.labels += [label] * len(files)
    if empty:
        raise DataError(
            f"{empty[0]} is a class without an image (expected {EXPECTED}); add images or remove the folder"
            f"{_more(empty)}{images.found.remainder()}"
        )
    if listed is not None:
        _keep_listed(images, folder, listed)
    return images


def _keep_listed(images: ClassImages, folder: Path, listed: Path) -> None:
    """Leave out the images that a list does not name."""
    wanted = {folder / line for line in read_list(listed)}
    kept = [(file, label) for file, label in zip(images.found.files, images.labels, strict=True) if file in wanted]
    absent = sorted(wanted - {file for file, _ in kept})
    if absent:
        raise DataError(
            f"{listed} lists {len(absent)} images that no class folder of {folder} has, first {absent[0]}; correct the "
            "list or add the images"
        )
    for file in images.found.files:
        if file not in wanted:
            images.found.leave_out(f"images that {listed} does not list", file)
    images.found.files, images.labels = [file for file, _ in kept], [label for _, label in kept]


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


def images_by_class(folder: Path, names: list[str], found: Found) -> dict[str, list[Path]]:
    """The images of each class folder, at any depth. Links to the class folders, or to the folder that holds them, are
    not followed.

    Args:
        found: what is left out is added to it.

    Raises:
        DataError: if links make one folder part of two classes.
    """
    of_classes: dict[Identity, str] = {}
    for name in names:
        other = of_classes.setdefault(identity(folder / name), name)
        if other != name:
            raise DataError(f"{folder / other} and {folder / name} are one folder (a link); keep one of the classes")
    images: dict[str, list[Path]] = {}
    read: set[Identity] = set()
    for itself, name in of_classes.items():
        others = {identity(folder), *of_classes} - {itself}
        entered = set(others)
        images[name] = image_files(folder / name, found, entered=entered)
        if read & (entered - others):
            raise DataError(f"{folder / name} shares a folder with another class (a link); remove the link")
        read |= entered - others
    return images


def _more(names: list) -> str:
    return f" ({len(names) - 1} more like it)" if len(names) > 1 else ""
