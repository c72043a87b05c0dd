"""The names that people give to splits and folders, and finding folders by them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from arm_images.find import EXTENSIONS, is_note_of_macos

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
          "test": "test", "testing": "test"}  # fmt: skip
IMAGES = ("images", "image", "imgs", "img", "jpegimages", "photos", "rgb", "leftimg8bit", "img_dir")
LABELS = ("masks", "mask", "labels", "label", "annotations", "annotation", "annots", "ann", "segmentationclass",
          "segmentationclassraw", "labelmaps", "gt", "gtfine", "ground_truth", "ann_dir")  # fmt: skip


def split_of(name: str) -> str | None:
    """The split that a name is about: "train" for `instances_train2017.json`; None if it names none, or two."""
    found = {SPLITS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def is_split(name: str) -> bool:
    """Whether a name is that of a split and nothing more: `train`, `val2017`."""
    return re.sub(r"\d+$", "", name.lower()) in SPLITS


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; without hidden ones and those of macOS."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(path for path in found if not is_note_of_macos(path))


def named(candidates: Iterable[Path], names: Sequence[str]) -> Path | None:
    """The first of the names that a folder has, in capital or small letters."""
    by_name = {path.name.lower(): path for path in candidates}
    return next((by_name[name] for name in names if name in by_name), None)


def has_files(folder: Path, endings: Iterable[str] = EXTENSIONS) -> bool:
    """Whether a folder has a file with one of some endings, itself or in its folders down to the second level."""
    endings = tuple(endings)
    patterns = ("*", "*/*", "*/*/*")
    return any(
        path.suffix.lower() in endings and not path.name.startswith(".")
        for pattern in patterns
        for path in folder.glob(pattern)
        if path.is_file()
    )
