"""Checks a COCO instance file and its images before training starts.

The other checks are `check_ade.check_ade` (label maps), `check_images.check_images` (pretraining) and
`check_class_folders` (classification). Each returns a `Report`: errors are faults that stop training or falsify its
result, notes are worth knowing. Nothing raises: a file that is not there is an error in the report too. Faults of one
kind are one line, with a count and the first names.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from arm_images.absent import absent_files

from .annotations import describe_absent, examine_coco
from .check_report import Report, by, some
from .look import look_at, note_turned, read_dense

MIN_SIZE = 32  # filter_cfg.min_size of the configurations
NARROW = 100  # long side over short side
LONG_SIDE = 1333  # pixels that the configurations resize a long side to


def check_coco(
    ann_file: str | Path,
    image_dir: str | Path,
    classes: Sequence[str] | None = None,
    decode: bool = False,
    progress: bool = False,
    masks: bool = True,
) -> Report:
    """Check a COCO instance file and its images.

    Args:
        ann_file: the `instances_*.json`.
        image_dir: folder that its file names are relative to.
        classes: names that must be among the categories.
        decode: read every image too (slow); its size is compared with the file always.
        progress: show a bar on stderr.
        masks: every object needs a segmentation, as training masks does.

    Returns:
        Facts: images, annotations, crowds, images_without_objects, missing, boxes_too_small, boxes_outside, and
        per_class (annotations by category name).
    """
    content, report = examine_coco(ann_file, masks)
    if content is None:
        return report
    categories = [category["name"] for category in content["categories"]]
    absent = [name for name in classes or () if name not in categories]
    report.error(f"classes not among the categories {some(categories)[2:]}", absent)

    paths: dict[str, list[dict]] = {}
    for image in content["images"]:
        paths.setdefault(os.path.join(image_dir, image["file_name"]), []).append(image)
    missing = absent_files(paths)
    names = [image["file_name"] for path in missing for image in paths.pop(path)]
    report.facts["missing"] = len(names)
    if missing:
        report.error(f"{describe_absent(missing, len(content['images']))}; all", names)
    _note_sizes(content["images"], report)
    _check_images({Path(path): images for path, images in paths.items()}, decode, report, progress)
    return report


def _note_sizes(images: list[dict], report: Report) -> None:
    sides = {image["file_name"]: sorted((image["width"], image["height"])) for image in images}
    narrow = [name for name, (short, long) in sides.items() if long > NARROW * short]
    lost = [name for name in narrow if sides[name][0] * LONG_SIDE < 0.5 * sides[name][1]]
    report.error(f"{len(lost)} images have no pixel left when their long side is resized to {LONG_SIDE} pixels", lost)
    report.note(f"{len(narrow)} images are over {NARROW} times longer than wide; resizing can leave no pixel", narrow)
    small = [image["file_name"] for image in images if min(image["width"], image["height"]) < MIN_SIZE]
    add = report.error if len(small) == len(images) else report.note
    add(f"{len(small)} images have a side below {MIN_SIZE} pixels; filter_cfg leaves them out of training", small)


def _check_images(entries: dict[Path, list[dict]], decode: bool, report: Report, progress: bool) -> None:
    """Look at the files; several images of the annotation file may name one."""
    unreadable, sizes, turned, unseen = [], [], [], 0
    for file, look in look_at(list(entries), read_dense, decode, progress):
        name = entries[file][0]["file_name"]
        unseen += not look.decoded
        if look.fault:
            unreadable.append(f"{name} ({look.fault})")
            continue
        stated = {(image["width"], image["height"]) for image in entries[file]} - {look.size}
        sizes += [f"{name} ({by(look.size)}, not {by(size)})" for size in stated]
        turned += [name] * look.turned
    report.error(f"{len(unreadable)} images cannot be decoded", unreadable)
    report.error(f"{len(sizes)} images have another size than the file states", sizes)
    report.not_decoded(unseen)
    note_turned(report, turned, ": boxes, masks, width and height must be those of the upright image")


def compare_categories(reports: Sequence[Report]) -> None:
    """Add an error where a file lacks categories of the first one: training and evaluation need the same names."""
    wanted = reports[0].facts.get("per_class", {}) if reports else {}
    for report in reports[1:]:
        names = report.facts.get("per_class")
        absent = [] if names is None else [name for name in wanted if name not in names]
        report.error(
            f"{len(absent)} categories of {reports[0].what} are not in this file; add them (also without annotations), "
            "or train on fewer classes and name these with --classes",
            absent,
        )
