"""What is wrong with a data set, found before training starts.

`check_coco` reads a COCO instance file and its pictures; `check_ade.check_ade` reads a folder in ADE20K
layout, `check_images.check_images` pictures for pretraining. Each returns a `Report`: errors are faults
that stop training or falsify its result, notes are worth knowing. Nothing raises: a file that
is not there is an error in the report too. Faults of one kind are one line, with a count and
the first names.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .check_images import _look_at, read_dense
from .check_report import Report, _by, _some

FEW = 0.001  # share of boxes with faults that true COCO has as well, and that loaders survive
COCO_KEYS = {  # what the checks rely on, and its type
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


def check_coco(
    ann_file: str | Path,
    image_dir: str | Path,
    classes: Sequence[str] | None = None,
    decode: bool = False,
    progress: bool = False,
) -> Report:
    """Check a COCO instance file and its pictures.

    Args:
        ann_file: the `instances_*.json`.
        image_dir: folder that its file names are relative to.
        classes: names that must be among the categories: mmdet drops others without a word.
        decode: read every picture too (slow), and compare its size with the file.
        progress: show a bar on stderr.

    Returns:
        Facts: images, annotations, crowds, images_without_objects, missing, boxes_too_small,
        boxes_outside, and per_class (annotations by category name).
    """
    ann_file, image_dir = Path(ann_file), Path(image_dir)
    report = Report(str(ann_file))
    content = _read_coco(ann_file, report)
    if content is None:
        return report
    images = {image["id"]: image for image in content["images"]}
    categories = {category["id"]: category["name"] for category in content["categories"]}
    _check_ids(content, images, categories, report)
    absent = [name for name in classes or () if name not in categories.values()]
    report.error(f"classes not among the categories {_some(list(categories.values()))[2:]}", absent)
    _check_annotations(content["annotations"], images, categories, report)

    names = [image["file_name"] for image in content["images"]]
    missing = [name for name in names if not (image_dir / name).is_file()]
    report.facts["missing"] = len(missing)
    report.error(f"{len(missing)} of {len(names)} images are not in {image_dir}", missing)
    if decode:
        gone = set(missing)
        there = [image for image in content["images"] if image["file_name"] not in gone]
        _check_pictures(there, image_dir, report, progress)
    return report


def _read_coco(ann_file: Path, report: Report) -> dict | None:
    """The parsed file if it has the lists and keys that the checks rely on."""
    try:
        content = json.loads(ann_file.read_bytes())
    except OSError as error:
        report.error(f"cannot be read ({error.strerror}); give an instances_*.json")
        return None
    except ValueError as error:
        report.error(f"is not JSON ({error}); it may be cut off: fetch it again")
        return None
    for part, keys in COCO_KEYS.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            report.error(f"has no list {part!r}; give a COCO instance file")
            continue
        for key, kind in keys.items():
            bad = [i for i, e in enumerate(entries) if not isinstance(_get(e, key), kind)]
            text = f"{len(bad)} entries of {part!r} have no proper {key!r}; their positions"
            report.error(text, bad)
    return content if report.ok else None


def _get(entry, key: str):
    return entry.get(key) if isinstance(entry, dict) else None


def _check_ids(content: dict, images: dict, categories: dict, report: Report) -> None:
    for part in ("images", "annotations", "categories"):
        counts = Counter(entry["id"] for entry in content[part])
        twice = [number for number, count in counts.items() if count > 1]
        report.error(f"{len(twice)} ids of {part!r} are used more than once", twice)
    annotations = content["annotations"]
    report.error(
        "category ids of annotations that are not among the categories",
        sorted({a["category_id"] for a in annotations} - set(categories)),
    )
    lost = [a["id"] for a in annotations if a["image_id"] not in images]
    report.error(f"{len(lost)} annotations belong to no listed image; annotation ids", lost)


def _check_annotations(annotations: list, images: dict, categories: dict, report: Report) -> None:
    small, outside, malformed, no_mask = [], [], [], []
    for annotation in annotations:
        image, box = images.get(annotation["image_id"]), annotation["bbox"]
        if not _is_box(box):
            malformed.append(annotation["id"])
            continue
        x, y, width, height = box
        if width < 1 or height < 1:
            small.append(annotation["id"])
        if image and (min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1):
            outside.append(annotation["id"])
        if not annotation.get("segmentation"):
            no_mask.append(annotation["id"])
    report.error(
        f"{len(malformed)} boxes are not [x, y, width >= 0, height >= 0] in finite numbers; annotation ids",
        malformed,
    )
    for found, text in (
        (small, "boxes are less than 1 pixel wide or high (mmdet skips them)"),
        (outside, "boxes reach more than 1 pixel out of their image"),
    ):
        add = report.error if len(found) > FEW * len(annotations) else report.note
        add(f"{len(found)} of {len(annotations)} {text}; annotation ids", found)
    report.note(f"{len(no_mask)} annotations have no segmentation; annotation ids", no_mask)

    crowds = sum(bool(annotation.get("iscrowd")) for annotation in annotations)
    empty = len(images.keys() - {annotation["image_id"] for annotation in annotations})
    per_class = Counter(categories.get(a["category_id"]) for a in annotations)
    report.facts.update(
        images=len(images),
        annotations=len(annotations),
        crowds=crowds,
        images_without_objects=empty,
        boxes_too_small=len(small),
        boxes_outside=len(outside),
        per_class={name: per_class[name] for name in categories.values()},
    )
    used = sum(count > 0 for count in report.facts["per_class"].values())
    report.note(
        f"{len(images)} images, {empty} of them without objects; {len(annotations)} annotations, "
        f"{crowds} of them crowd regions; {used} of {len(categories)} categories have annotations"
    )
    if not annotations:
        report.error("has no annotations; training needs some")


def _is_box(box) -> bool:
    try:
        values = np.asarray(box, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return bool(values.shape == (4,) and np.isfinite(values).all() and (values[2:] >= 0).all())


def _check_pictures(entries: list, image_dir: Path, report: Report, progress: bool) -> None:
    stated = {entry["file_name"]: (entry["width"], entry["height"]) for entry in entries}
    unreadable, sizes, turned = [], [], []
    files = {image_dir / name: name for name in stated}
    for file, look in _look_at(list(files), read_dense, progress):
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
