"""Recognises data sets in YOLO's format: `data.yaml`, images, and one text file of boxes or polygons for each image.

Boxes and polygons are rewritten as a COCO file, point by point. `supervision.DetectionDataset.from_yolo(...)` and
`as_coco(...)` convert them too, but by way of masks in whole pixels, all in memory. Of 94 objects on photographs
the masks then agree to an IoU of 0.976 to 1 and have twelve times the points, and an object with a hole, which YOLO
writes with a seam, becomes a crowd region, which training ignores. Here a fault is named with file and line.
"""

import math
import os
from pathlib import Path

from arm_images.errors import DataError
from arm_images.find import EXPECTED, Found, image_files
from arm_images.header import read_header
from arm_images.lists import read_list
from arm_images.read import reason

from ..check_report import some
from .instances import Instances, Part
from .names import SPLITS, folders, has_files, named

TOLERANCE = 0.01  # how far out of the image a coordinate may reach, as a fraction of its side; it is clipped
POLYGON = 7  # numbers in a line with the smallest polygon: a class and three points


def find_yolo(data: Path) -> Instances | None:
    """The YOLO data set of a `data.yaml`, or in a folder with one; None if there is none.

    Raises:
        DataError: naming the file, its line and the fault; if there are YOLO's label files but no `data.yaml`.
    """
    file = data if data.is_file() and data.suffix.lower() in (".yaml", ".yml") else _yaml_file(data)
    if file is None:
        labels = named(folders(data), ("labels",))
        if labels is not None and has_files(labels, [".txt"]) and not has_files(labels, [".png"]):
            raise DataError(
                f"{data} has YOLO's label files in {labels}, but no data.yaml that names their classes; write one: "
                'train: images, and names: ["first class", "second class", ...]'
            )
        return None
    content = _read_yaml(file)
    classes = _class_names(content, file)
    notes: list[str] = []
    keypoints = _keypoints(content)
    if keypoints:
        notes.append(f"{file.name} describes keypoints: their boxes are used")
    parts = {}
    for key in ("train", "val", "valid", "test"):
        images = _images_of(content.get(key), content, file, key)
        if images:
            split = SPLITS[key]
            parts[split] = Part(_convert(images, file.parent, classes, keypoints, split, notes), file.parent)
    if not parts:
        raise DataError(f"{file} names no images: give train: FOLDER and val: FOLDER, relative to {file.parent}")
    return Instances(file.parent, "YOLO label files", parts, classes, notes)


def _yaml_file(root: Path) -> Path | None:
    files = [path for path in sorted(root.glob("*.y*ml")) if path.suffix.lower() in (".yaml", ".yml")]
    files = [path for path in files if "names" in path.read_text(encoding="utf-8", errors="replace")]
    return named(files, ("data.yaml", "data.yml", "dataset.yaml")) or (files[0] if files else None)


def _read_yaml(file: Path) -> dict:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); give a data.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1}: {getattr(error, 'problem', '')})" if mark else ""
        raise DataError(f"{file} is not YAML in UTF-8{line}; correct it: train:, val: and names:") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no keys; write train:, val: and names:")
    return content


def _class_names(content: dict, file: Path) -> list[str]:
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise DataError(f"{file}: names has the numbers {some(list(names))[2:]}; number the classes from 0 on")
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names={names!r}; list the names of the classes, in the order of their numbers")
    names = [str(name).strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1 or not name})
    if twice:
        raise DataError(f"{file}: names has {some(twice)[2:] or 'an empty name'} more than once; name each class once")
    count = content.get("nc", len(names))
    if count != len(names):
        raise DataError(f"{file}: nc is {count}, but names has {len(names)} entries; correct one of them")
    return names


def _keypoints(content: dict) -> int:
    """Numbers that follow the box in a label for poses; 0 in other data sets."""
    shape = content.get("kpt_shape")
    whole = isinstance(shape, list) and len(shape) == 2 and all(type(value) is int and value > 0 for value in shape)
    return shape[0] * shape[1] if whole else 0


def _images_of(given: object, content: dict, file: Path, key: str) -> list[Path]:
    """The images of a split: of folders, of text files that list images, or of a list of both."""
    images: list[Path] = []
    for entry in given if isinstance(given, list) else [given] if given else []:
        place = _resolve(str(entry), str(content.get("path") or ""), file)
        if place is None:
            tried = file.parent / str(content.get("path") or "") / str(entry)
            raise DataError(f"{file}: {key}: {entry} does not exist ({tried}); write a path relative to {file.parent}")
        if place.is_dir():
            found = Found(place)
            files = image_files(place, found)
            if not files:
                raise DataError(f"{place} has no images ({EXPECTED}){found.remainder()}; correct {key} in {file}")
            images += files
        else:
            listed = [Path(line) for line in read_list(place)]
            images += [path if path.is_absolute() else place.parent / path for path in listed]
    return images


def _resolve(entry: str, base: str, file: Path) -> Path | None:
    """A path in a data.yaml: relative to its `path`, to itself, or, as Roboflow writes it, one folder too high."""
    inside = entry.replace("\\", "/")
    while inside.startswith("../"):
        inside = inside[3:]
    candidates = [Path(base, entry), file.parent / base / entry, file.parent / entry, file.parent / inside]
    return next((path for path in candidates if path.is_absolute() and path.exists() or path.exists()), None)


def _label_file(image: Path) -> Path:
    """As YOLO finds it: the last folder `images` of the path is `labels`; else beside the image."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() == "images":
            other = Path(*parts[:index], "labels", *parts[index + 1 :]).with_suffix(".txt")
            return other
    return image.with_suffix(".txt")


def _convert(images: list[Path], root: Path, classes: list[str], keypoints: int, split: str, notes: list[str]) -> dict:
    """The content of a COCO file for the images of a split."""
    entries, annotations, bare = [], [], []
    clipped = 0
    for number, image in enumerate(images, 1):
        try:
            size = read_header(image).size
        except Exception as error:  # noqa: BLE001 whatever a decoder makes of a damaged file
            raise DataError(f"image {image} cannot be read ({reason(error)}); repair or remove it") from None
        name = os.path.relpath(image, root)
        entries.append(dict(id=number, file_name=name, width=size[0], height=size[1]))
        file = _label_file(image)
        if not file.is_file():
            bare.append(name)
            continue
        for annotation, was_clipped in _read_labels(file, size, len(classes), keypoints):
            annotations.append(dict(id=len(annotations) + 1, image_id=number, iscrowd=0, **annotation))
            clipped += was_clipped
    if not annotations:
        example = _label_file(images[0])
        raise DataError(
            f"none of the {len(images)} images of {split} has a label file with objects, first {images[0]}; its label "
            f"file would be {example}"
        )
    if bare:
        notes.append(f"{split}: {len(bare)} images have no label file: taken as images without objects{some(bare, 3)}")
    if clipped:
        notes.append(f"{split}: {clipped} objects reach a little out of their image: clipped")
    categories = [dict(id=number, name=name) for number, name in enumerate(classes, 1)]
    return dict(images=entries, annotations=annotations, categories=categories)


def _read_labels(file: Path, size: tuple[int, int], num_classes: int, keypoints: int) -> list[tuple[dict, bool]]:
    """The objects of a label file, and whether each was clipped."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({reason(error)}); it must be text in UTF-8") from None
    objects = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            objects.append(_read_line(line.split(), f"{file}, line {number}", size, num_classes, keypoints))
    return objects


def _read_line(words: list[str], where: str, size: tuple[int, int], num_classes: int, keypoints: int) -> tuple:
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise DataError(f"{where}: {' '.join(words)[:60]!r} holds something else than numbers; correct it") from None
    label, values = values[0], values[1:]
    if label != int(label if math.isfinite(label) else -1) or not 0 <= label < num_classes:
        raise DataError(
            f"{where}: class {words[0]}, but data.yaml names {num_classes} classes, 0 to {num_classes - 1}; correct "
            "the line or add the class to names"
        )
    if keypoints and len(values) == 4 + keypoints:
        values = values[:4]
    if len(values) == 5:
        values = values[:4]  # a confidence follows
    if len(values) != 4 and (len(values) < POLYGON - 1 or len(values) % 2):
        raise DataError(
            f"{where}: {len(values)} numbers follow the class; a box has 4 (centre, width, height), a polygon two for "
            "each of three points or more"
        )
    is_box = len(values) == 4
    points = _corners(values) if is_box else values
    worst = max(points, key=lambda value: abs(value - 0.5) if math.isfinite(value) else math.inf)
    if not math.isfinite(worst) or not -TOLERANCE <= worst <= 1 + TOLERANCE:
        raise DataError(
            f"{where}: the coordinate {worst:g} lies outside the image; YOLO's coordinates are fractions of the "
            "image's width and height, from 0 to 1, not pixels"
        )
    if is_box and min(values[2:]) <= 0:
        raise DataError(f"{where}: the box is {values[2]:g} wide and {values[3]:g} high; correct or remove it")
    clipped = [min(max(value, 0.0), 1.0) for value in points]
    scaled = [value * size[index % 2] for index, value in enumerate(clipped)]
    xs, ys = scaled[0::2], scaled[1::2]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    annotation = dict(category_id=int(label) + 1, bbox=box, area=box[2] * box[3])
    if not is_box:
        annotation.update(segmentation=[scaled], area=_area(xs, ys) or annotation["area"])
    return annotation, clipped != points


def _corners(box: list[float]) -> list[float]:
    """Two opposite corners of a box of centre, width and height."""
    x, y, width, height = box
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def _area(xs: list[float], ys: list[float]) -> float:
    """Of a polygon (shoelace formula)."""
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
