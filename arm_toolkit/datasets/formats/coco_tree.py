"""Recognises data sets in COCO's format: annotation files beside folders of images, and Roboflow's exports."""

import mmap
import re
from pathlib import Path, PureWindowsPath

from arm_images.errors import DataError

from ..annotations import read_coco
from .instances import Instances, Part, best_folder, unused_categories
from .names import IMAGES, SPLITS, folders, is_split, split_of

OTHER = ("caption", "keypoint", "panoptic", "stuff", "image_info", "result")  # files of COCO's other tasks
KEYS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')


def find_coco(data: Path) -> Instances | None:
    """The COCO data set in a folder, or of one annotation file; None if there is none.

    Raises:
        DataError: for a fault of an annotation file, images that are not found, or several files for one split.
    """
    files = [data] if data.is_file() and data.suffix.lower() == ".json" else _annotation_files(data)
    if not files:
        return None
    root = data if data.is_dir() else _root_of(data)
    notes: list[str] = []
    by_split = {"train": files[0]} if len(files) == 1 else _by_split(files, root)
    parts = {split: _read(file, root, notes) for split, file in by_split.items()}
    roboflow = any(file.name == "_annotations.coco.json" for file in by_split.values())
    layout = "Roboflow's COCO export" if roboflow else "COCO annotation files"
    return Instances(root, layout, parts, _classes(parts, notes), notes)


def _annotation_files(root: Path) -> list[Path]:
    """The JSON files of a folder, and of its folders, that hold images and annotations."""
    places = [root, *folders(root)]
    found = [file for place in places for file in sorted(place.glob("*.json")) if not file.name.startswith(".")]
    return [file for file in found if not any(word in file.name.lower() for word in OTHER) and _is_coco(file)]


def _is_coco(file: Path) -> bool:
    if not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return len({found[1] for found in KEYS.finditer(content)}) >= 2


def _root_of(file: Path) -> Path:
    """The data set's folder, of one of its annotation files."""
    above = file.absolute().parent
    return above.parent if above.name.lower() in ("annotations", "labels", "annotation") else above


def _by_split(files: list[Path], root: Path) -> dict[str, Path]:
    """One file for each split, by their names or those of their folders; of several families COCO's instances."""
    chosen: dict[str, list[Path]] = {}
    for file in files:
        split = split_of(file.stem) or (split_of(file.parent.name) if file.parent != root else None)
        chosen.setdefault(split or "", []).append(file)
    unnamed = chosen.pop("", [])
    if not chosen:
        raise DataError(
            f"{root} has the annotation files {', '.join(file.name for file in unnamed)}, and none is named after a "
            "split; rename them to train.json and val.json, or give one of them instead of the folder"
        )
    result = {}
    for split in sorted(chosen, key=list(dict.fromkeys(SPLITS.values())).index):
        same = [file for file in chosen[split] if file.name.startswith("instances")] or chosen[split]
        if len(same) > 1:
            raise DataError(
                f"{root} has several annotation files for {split}: {', '.join(file.name for file in same)}; keep one "
                "of them there, or give one instead of the folder"
            )
        result[split] = same[0]
    return result


def _read(file: Path, root: Path, notes: list[str]) -> Part:
    """Read a file and find the folder of its images."""
    content, _ = read_coco(file, masks=False)
    names = [image["file_name"] for image in content["images"]]
    candidates = _image_folders(file, root)
    images, count = best_folder(names, candidates)
    if count:
        return Part(content, images, file)
    # other programs write folders of the machine where the images were annotated
    last = [PureWindowsPath(name).name for name in names]
    images, count = best_folder(last, candidates)
    if count and len(set(last)) == len(last):
        for image, name in zip(content["images"], last, strict=True):
            image["file_name"] = name
        notes.append(f"{file.name}: of file names such as {names[0]} only the last part is used")
        return Part(content, images)
    where = ", ".join(dict.fromkeys(str(folder) for folder in candidates))
    raise DataError(
        f"{file}: none of its {len(names)} images is there, first {names[0]}; looked in {where}; put them into one of "
        "these, or correct file_name"
    )


def _image_folders(file: Path, root: Path) -> list[Path]:
    """Where the images of an annotation file may be, the likeliest first."""
    split = split_of(file.stem) or split_of(file.parent.name)
    token = re.sub(r"^instances_|^annotations?_|_annotations.*|_coco$", "", file.stem.lower())
    places = [file.parent, root, *(path for path in folders(root) if path.name.lower() in IMAGES)]
    inner = [path for place in places for path in folders(place)]
    exact = [path for path in inner if path.name.lower() == token]
    same = [path for path in inner if split and is_split(path.name) and split_of(path.name) == split]
    other = [path for path in inner if path.name.lower() in IMAGES]
    deep = [path for place in same for path in folders(place) if path.name.lower() in IMAGES]
    places += [path for path in inner if is_split(path.name)]
    return list(dict.fromkeys([*exact, *same, *deep, *other, *places]))


def _classes(parts: dict[str, Part], notes: list[str]) -> list[str]:
    """The training split's categories, without the one that Roboflow adds as a name for all of them."""
    content = parts["train" if "train" in parts else next(iter(parts))].content
    categories = content["categories"]
    unused = set.intersection(*(unused_categories(part.content) for part in parts.values()))
    heads = [c["name"] for c in categories if c["name"] in unused and c.get("supercategory") == "none"]
    heads = [name for name in heads if any(c.get("supercategory") == name for c in categories)]
    if heads:
        notes.append(f"the category {heads[0]} is left out: it names a group of classes and has no objects")
    return [category["name"] for category in categories if category["name"] not in heads[:1]]
