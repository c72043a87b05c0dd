"""Checks images for classification: class folders, and ImageNet's sets for evaluation."""

from collections.abc import Sequence
from pathlib import Path

from arm_images.errors import DataError
from arm_images.find import Found
from arm_images.read import read_rgb

from .check_report import Report
from .class_images import ClassImages, find_class_images
from .look import look_at, note_turned


def check_class_folders(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    decode: bool = False,
    progress: bool = False,
) -> list[Report]:
    """Check the folders `root/SPLIT/CLASS/`, with the code that training finds and reads them with.

    Args:
        splits: the first one defines the classes.
        decode: read every image (slow); else only its header if it is of a common kind.
        progress: show a bar on stderr.

    Returns:
        a report for each split. Facts: images, per_class (images by class), unreadable.
    """
    reports = []
    for split in splits:
        report = Report(str(Path(root) / split))
        reports.append(report)
        try:
            images = find_class_images(Path(root), split, splits[0])
        except DataError as error:
            report.error(str(error))
            continue
        check_class_images(images, report, decode, progress)
    return reports


def check_class_images(images: ClassImages, report: Report, decode: bool = False, progress: bool = False) -> None:
    """Check the images of one split; what is found is added to the report, with the facts of `check_class_folders`."""
    per_class = dict.fromkeys(images.classes, 0)
    for label in images.labels:
        per_class[images.classes[label]] += 1
    report.facts["per_class"] = per_class
    few, many = min(per_class.items(), key=lambda item: item[1]), max(per_class.items(), key=lambda item: item[1])
    report.note(
        f"{len(images.labels)} images of {len(per_class)} classes; fewest in {few[0]} ({few[1]}), most in "
        f"{many[0]} ({many[1]})"
    )
    _look(images.found, decode, progress, report)


def check_imagenet_set(
    name: str,
    root: str | Path,
    val: str | Path | None = None,
    decode: bool = False,
    progress: bool = False,
) -> Report:
    """Check one of the sets of `imagenet_sets`, with the code that `tools/robustness.py` finds and reads it with.

    Args:
        name: val, v2, real, a, r or sketch.
        root, val: see `imagenet_sets.open_set`.
        decode, progress: see `check_class_folders`.

    Returns:
        Facts: images, published (images of the complete set), unreadable.
    """
    from .imagenet_sets import TITLES, open_set  # imports torch

    report = Report(TITLES[name])
    try:
        dataset = open_set(name, root, lambda image: image, val)
    except DataError as error:
        report.error(str(error))
        return report
    report.facts["published"] = dataset.published
    report.note(f"{len(dataset)} of {dataset.published} images")
    if len(dataset) != dataset.published:
        report.note("its accuracy is not comparable with published ones")
    _look(Found(Path(root), [path for path, _ in dataset.samples]), decode, progress, report)
    return report


def _look(found: Found, decode: bool, progress: bool, report: Report) -> None:
    report.left_out(found.left_out)
    unreadable, turned, unseen = [], [], 0
    for file, look in look_at(found.files, read_rgb, decode, progress):
        unseen += not look.decoded
        turned += [file] * look.turned
        if look.fault:
            unreadable.append(f"{file} ({look.fault})")
    report.facts.update(images=len(found.files), unreadable=len(unreadable))
    report.error(f"{len(unreadable)} of {len(found.files)} images cannot be decoded", unreadable)
    report.not_decoded(unseen)
    note_turned(report, turned)
