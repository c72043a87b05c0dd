"""What is wrong with a data set, found before training starts.

`check_coco` reads a COCO instance file and its pictures; `check_ade.check_ade` reads a folder in ADE20K
layout, `check_images.check_images` pictures for pretraining. Each returns a `Report`: errors are faults
that stop training or falsify its result, notes are worth knowing. Nothing raises: a file that
is not there is an error in the report too. Faults of one kind are one line, with a count and
the first names.
"""

from collections.abc import Sequence
from pathlib import Path

from .annotations import examine_coco
from .check_images import _look_at, read_dense
from .check_report import Report, _by, _some


def check_coco(
    ann_file: str | Path,
    image_dir: str | Path,
    classes: Sequence[str] | None = None,
    decode: bool = False,
    progress: bool = False,
    masks: bool = True,
) -> Report:
    """Check a COCO instance file and its pictures.

    Args:
        ann_file: the `instances_*.json`.
        image_dir: folder that its file names are relative to.
        classes: names that must be among the categories: mmdet drops others without a word.
        decode: read every picture too (slow); its size is compared with the file always.
        progress: show a bar on stderr.
        masks: every object needs a segmentation, as training masks does.

    Returns:
        Facts: images, annotations, crowds, images_without_objects, missing, boxes_too_small,
        boxes_outside, and per_class (annotations by category name).
    """
    image_dir = Path(image_dir)
    content, report = examine_coco(ann_file, masks)
    if content is None:
        return report
    categories = [category["name"] for category in content["categories"]]
    absent = [name for name in classes or () if name not in categories]
    report.error(f"classes not among the categories {_some(categories)[2:]}", absent)

    names = [image["file_name"] for image in content["images"]]
    missing = [name for name in names if not (image_dir / name).is_file()]
    report.facts["missing"] = len(missing)
    report.error(f"{len(missing)} of {len(names)} images are not in {image_dir}", missing)
    gone = set(missing)
    there = [image for image in content["images"] if image["file_name"] not in gone]
    _check_pictures(there, image_dir, decode, report, progress)
    return report


def _check_pictures(entries: list, image_dir: Path, decode: bool, report: Report, progress: bool) -> None:
    stated = {entry["file_name"]: (entry["width"], entry["height"]) for entry in entries}
    unreadable, sizes, turned = [], [], []
    files = {image_dir / name: name for name in stated}
    for file, look in _look_at(list(files), read_dense if decode else None, progress):
        name = files[file]
        if look.fault:
            unreadable.append(f"{name} ({look.fault})")
        elif look.size != stated[name]:
            sizes.append(f"{name} ({_by(look.size)}, not {_by(stated[name])})")
        turned += [name] * look.turned
    report.error(f"{len(unreadable)} images cannot be decoded", unreadable)
    report.error(f"{len(sizes)} images have another size than the file states", sizes)
    report.note(
        f"{len(turned)} images have an EXIF orientation; they are read upright: boxes, masks, width and height must "
        "be those of the upright image",
        turned,
    )
