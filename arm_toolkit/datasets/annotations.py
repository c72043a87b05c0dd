"""Reads COCO instance files: for training, evaluation, cropping and the check of a data set.

`examine_coco` finds every fault and repairs what has one meaning only; `read_coco` stops at a fault. So a file that
`tools/prepare_data.py check coco` accepts is one that trains and evaluates.
"""

import json
import mmap
import re
from collections import Counter
from pathlib import Path

from arm_images.absent import similar_file
from arm_images.errors import DataError
from arm_images.lists import ARCHIVES

from .check_report import Report
from .segmentations import NUMBERS, drop_degenerate, is_box, is_far, mask_area, segmentation_fault

FEW = 0.001  # share of annotations with a fault that true COCO has as well, and that loaders survive
MAX_SIDE, MAX_PIXELS = 2**20, 2**30  # OpenCV decodes no larger image
PARTS = ("images", "annotations", "categories")
CHECK = "tools/prepare_data.py check coco lists all faults"


def read_coco(file: str | Path, masks: bool = True, images_only: bool = False) -> tuple[dict, Report]:
    """The content of a COCO instance file, checked and repaired, and what was found.

    Args:
        masks: objects must have a segmentation.
        images_only: the file may have no annotations, as a test set whose objects are secret.

    Returns:
        `images`, `annotations` and `categories` as in the file, but: ids that are whole numbers are ints; every
        annotation has an `area` > 0 if its box has one, `iscrowd` (0 or 1), and an `id` > 0.

    Raises:
        DataError: naming the file, the first fault and the ids.
    """
    content, report = examine_coco(file, masks, images_only)
    if report.errors:
        more = f" (and {len(report.errors) - 1} other faults)" if len(report.errors) > 1 else ""
        raise DataError(f"{file}: {report.errors[0]}{more}; {CHECK}")
    return content, report


def examine_coco(file: str | Path, masks: bool = True, images_only: bool = False) -> tuple[dict | None, Report]:
    """Like `read_coco`, but faults are errors in the report; the content is None where its lists are not as needed.

    The report's facts: images, annotations, crowds, images_without_objects, boxes_too_small, boxes_outside, per_class
    (annotations by category name), and repairs (sentences).
    """
    report = Report(str(file), facts=dict(repairs=[]))
    content = _parse(Path(file), images_only, report)
    if content is None:
        return None, report
    images = _read_images(content["images"], report)
    categories = _read_categories(content["categories"], report)
    _read_ids(content["annotations"], report)
    if not report.ok:
        return None, report
    _read_annotations(content["annotations"], images, categories, masks, report)
    _describe(content["annotations"], images, categories, images_only, report)
    for repair in report.facts["repairs"]:
        report.note(repair)
    return content, report


def read_categories(file: Path) -> list[dict]:
    """The categories of a COCO file; avoids parsing all of it (hundreds of megabytes) if possible.

    Raises:
        DataError: if the file is cut off or has no categories.
    """
    if file.stat().st_size:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = list(re.finditer(rb'"categories"\s*:\s*(?=\[\s*\{)', content))
            if len(found) == 1:  # several: some belong to other parts of the file
                text = content[found[0].end() : found[0].end() + 2**20].decode(errors="replace")
                try:
                    return [entry for entry in json.JSONDecoder().raw_decode(text)[0] if isinstance(entry, dict)]
                except (ValueError, RecursionError):
                    pass
    report = Report(str(file))
    content = _parse(file, True, report)
    if content is None:
        raise DataError(f"{file} {report.errors[0]}; {CHECK}")
    return [entry for entry in content["categories"] if isinstance(entry, dict)]


def describe_absent(absent: list[str], total: int) -> str:
    """A sentence about images that do not exist; `absent` are their paths."""
    similar = similar_file(absent[0])
    hint = f" ({similar} is there: correct the file names)" if similar else ""
    return f"{len(absent)} of {total} images do not exist, first {absent[0]}{hint}"


def _parse(file: Path, images_only: bool, report: Report) -> dict | None:
    """The parsed file if it is a dict with the three lists."""
    if file.exists() and not file.is_file():
        report.error("is not a regular file; give a COCO instance file")
        return None
    try:
        data = file.read_bytes()
        for start, kind in ARCHIVES.items():
            if data.startswith(start):
                report.error(f"is {kind}; unpack it, and give the COCO instance file in it")
                return None
        content = json.loads(data, object_pairs_hook=_each_key_once)
    except OSError as error:
        report.error(f"cannot be read ({error.strerror}); give a COCO instance file")
        return None
    except (ValueError, RecursionError) as error:
        report.error(
            f"is not JSON ({error}); it may be cut off or damaged: fetch it again, and give a COCO instance file"
        )
        return None
    if isinstance(content, dict) and images_only:
        content.setdefault("annotations", [])
    for part in PARTS:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            report.error(f"has no list {part!r}; give a COCO instance file")
    return content if report.ok else None


def _each_key_once(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object. Readers of JSON take the last of two equal keys, and the objects under the first would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r} stands twice in one object")
    return content


def _id(value: object) -> int | str | None:
    """An id as int or text, or None if it is neither: `1.0` is 1, as for every reader of JSON."""
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is int or type(value) is str and value else None


def _take(entries: list, part: str, key: str, read, report: Report) -> None:
    """Replace a key of each entry by what `read` makes of it; entries where that is None are an error."""
    bad = []
    for position, entry in enumerate(entries):
        value = read(entry.get(key)) if isinstance(entry, dict) else None
        if value is None:
            named = isinstance(entry, dict) and key != "id" and _id(entry.get("id")) is not None
            bad.append(f"id {entry['id']}" if named else f"position {position}")
        elif entry[key] is not value:
            entry[key] = value
    report.error(f"{len(bad)} entries of {part!r} have no proper {key!r}", bad)


def _only_once(values: list, what: str, report: Report) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    report.error(f"{len(twice)} {what} are used more than once", twice)


def _side(value: object) -> int | None:
    whole = type(value) is int or type(value) is float and value.is_integer()
    return int(value) if whole and 1 <= value <= MAX_SIDE else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() and "\0" not in value else None


def _read_images(entries: list, report: Report) -> dict:
    """Check the images and return them by id."""
    for key, read in dict(id=_id, file_name=_text, height=_side, width=_side).items():
        _take(entries, "images", key, read, report)
    if not report.ok:
        return {}
    if not entries:
        report.error("has no images")
    ids = [entry["id"] for entry in entries]
    _only_once(ids, "ids of 'images'", report)
    # numpy sorts the ids in the evaluation: mixed with texts it compares texts, and larger numbers lose digits
    if len(set(map(type, ids))) > 1:
        report.error("some ids of 'images' are numbers and some are texts; give all of them one type")
    elif huge := [value for value in ids if type(value) is int and not -(2**63) <= value < 2**63]:
        report.error(f"{len(huge)} ids of 'images' do not fit 64 bits; number the images", huge)
    huge = [entry["id"] for entry in entries if entry["width"] * entry["height"] > MAX_PIXELS]
    report.error(f"{len(huge)} images have more than 2^30 pixels; image ids", huge)
    twice = [name for name, count in Counter(entry["file_name"] for entry in entries).items() if count > 1]
    report.note(f"{len(twice)} files are listed as more than one image", twice)
    return {entry["id"]: entry for entry in entries}


def _read_categories(entries: list, report: Report) -> dict:
    """Check the categories and return their names by id."""
    before = len(report.errors)
    for key, read in dict(id=_id, name=_text).items():
        _take(entries, "categories", key, read, report)
    if len(report.errors) > before:
        return {}
    if not entries:
        report.error("has no categories")
    _only_once([entry["id"] for entry in entries], "ids of 'categories'", report)
    _only_once([entry["name"] for entry in entries], "names of 'categories'", report)
    padded = [entry["name"] for entry in entries if entry["name"] != entry["name"].strip()]
    report.note(
        f"{len(padded)} names of 'categories' begin or end with a blank, as must those in metainfo.classes",
        list(map(repr, padded)),
    )
    return {entry["id"]: entry["name"] for entry in entries}


def _read_ids(annotations: list, report: Report) -> None:
    """Check the annotations' ids, and number them from 1 where an id could be taken for "none"."""
    before = len(report.errors)
    for key in ("id", "image_id", "category_id"):
        _take(annotations, "annotations", key, _id, report)
    if len(report.errors) > before:
        return
    _only_once([annotation["id"] for annotation in annotations], "ids of 'annotations'", report)
    odd = [a["id"] for a in annotations if type(a["id"]) is str or not 0 < a["id"] < 2**53]
    if odd:
        # pycocotools marks a match by the annotation's id as a float, so id 0 counts as no match
        report.facts["repairs"].append(
            f"annotation ids such as {odd[0]!r} cannot be evaluated: annotations are numbered from 1"
        )


def _read_annotations(annotations: list, images: dict, categories: dict, masks: bool, report: Report) -> None:
    """Check boxes, areas, crowd flags and segmentations, and repair them in place."""
    faults: dict[str, list] = {}
    small, outside = [], []
    computed, flagged, degenerate, ignored = 0, 0, 0, 0
    renumber = bool(report.facts["repairs"])

    for number, annotation in enumerate(annotations, 1):
        name, image = annotation["id"], images.get(annotation["image_id"])
        if renumber:
            annotation["id"] = number
        if image is None:
            faults.setdefault("annotations belong to no listed image", []).append(name)
            continue
        if annotation["category_id"] not in categories:
            what = "annotations have a category id that is not among the categories"
            faults.setdefault(what, []).append(name)
            continue
        width, height = image["width"], image["height"]
        box, crowd = annotation.get("bbox"), annotation.get("iscrowd")
        if not is_box(box):
            faults.setdefault("boxes are not [x, y, width >= 0, height >= 0] in finite numbers", []).append(name)
            continue
        x, y, w, h = box
        if is_far([x, y, x + w, y + h], max(width, height)):
            what = "boxes are not [x, y, width >= 0, height >= 0] in finite numbers near their image"
            faults.setdefault(what, []).append(name)
            continue
        if w < 1 or h < 1:
            small.append(name)
        elif min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
            outside.append(name)
        if crowd is None:
            annotation["iscrowd"] = 0
            flagged += 1
        elif crowd not in (0, 1) or type(crowd) is str:
            faults.setdefault("annotations have an 'iscrowd' that is neither 0 nor 1", []).append(name)
        ignored += bool(annotation.get("ignore"))

        mask = annotation.get("segmentation")
        fault = segmentation_fault(mask, width, height) if mask else ""
        if fault:
            faults.setdefault(fault, []).append(name)
            continue
        if not mask:
            annotation.pop("segmentation", None)
            if masks:
                faults.setdefault("annotations have no segmentation, which training masks needs", []).append(name)
        elif (kept := drop_degenerate(mask)) is not mask:
            degenerate += len(mask) - len(kept)
            mask = annotation["segmentation"] = kept
        area = annotation.get("area")
        if type(area) not in NUMBERS or not 0 < area <= 2 * width * height:
            annotation["area"] = (mask_area(mask, width, height) if mask else 0) or w * h
            computed += 1

    for what, names in faults.items():
        report.error(f"{len(names)} {what}; annotation ids", names)
    for what, names in (
        ("boxes are less than 1 pixel wide or high (training leaves them out, the evaluation counts them)", small),
        ("boxes reach more than 1 pixel out of their image (clip them)", outside),
    ):
        add = report.error if len(names) > FEW * len(annotations) else report.note
        add(f"{len(names)} of {len(annotations)} {what}; annotation ids", names)
    report.facts.update(boxes_too_small=len(small), boxes_outside=len(outside))
    repairs = report.facts["repairs"]
    if computed:
        repairs.append(
            f"{computed} areas are missing, not positive or larger than their image: computed from segmentation or box"
        )
    if flagged:
        repairs.append(f"{flagged} annotations have no 'iscrowd': taken as 0")
    if degenerate:
        repairs.append(f"{degenerate} polygons of fewer than three points are left out; their objects have others")
    if ignored:
        report.note(f"{ignored} annotations are marked 'ignore': training leaves them out, the evaluation counts them")


def _describe(annotations: list, images: dict, categories: dict, images_only: bool, report: Report) -> None:
    """Count what there is; a file without any object is an error."""
    crowds = sum(annotation.get("iscrowd") == 1 for annotation in annotations)
    empty = len(images.keys() - {annotation["image_id"] for annotation in annotations})
    per_class = Counter(categories.get(annotation["category_id"]) for annotation in annotations)
    report.facts.update(
        images=len(images),
        annotations=len(annotations),
        crowds=crowds,
        images_without_objects=empty,
        per_class={name: per_class[name] for name in categories.values()},
    )
    used = sum(count > 0 for count in report.facts["per_class"].values())
    report.note(
        f"{len(images)} images, {empty} of them without objects; {len(annotations)} annotations, "
        f"{crowds} of them crowd regions; {used} of {len(categories)} categories have annotations"
    )
    if not annotations and not images_only:
        report.error("has no annotations; training and evaluation need some")
    elif annotations and crowds == len(annotations):
        report.error(f"has crowd regions only ({crowds}); training and evaluation need single objects")
