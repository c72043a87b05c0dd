"""A data set of images in one folder per class: what is in it, its check, and the lists of its splits."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from arm_images.errors import DataError
from arm_images.find import Found
from arm_images.header import read_header
from arm_images.read import reason

from ..check_class_folders import check_class_images
from ..check_report import Report, some
from ..class_images import class_names, find_class_images, images_by_class
from .holdout import RULE, equal_files, hold_out
from .names import folders, has_files, is_split, split_of


@dataclass
class ClassPart:
    """One split: `root/split/CLASS/`.

    Attributes:
        split: the folder's name, "" if the class folders lie in the root.
        files: images relative to that folder.
        listed: a text file with these; None uses all of the folder.
    """

    split: str
    files: list[str]
    listed: Path | None = None
    whole: bool = True


@dataclass
class ClassTree:
    """A data set of class folders; attributes as in `Instances`."""

    root: Path
    layout: str
    parts: dict[str, ClassPart]
    classes: list[str]
    notes: list[str] = field(default_factory=list)

    task = "classification"

    @property
    def needs_folder(self) -> bool:
        """Whether lists of the splits have to be written."""
        return not all(part.whole for part in self.parts.values())

    def write(self, folder: Path) -> None:
        """Write the lists of the splits where folders do not make them."""
        folder.mkdir(parents=True, exist_ok=True)
        for split, part in self.parts.items():
            if not part.whole:
                part.listed = folder / f"{split}.txt"
                part.listed.write_text("".join(f"{name}\n" for name in part.files), encoding="utf-8")

    def check(self, progress: bool = False) -> list[Report]:
        """Check what will be trained, as `tools/prepare_data.py check classes` does; call `write` before."""
        reports = []
        for name, part in self.parts.items():
            report = Report(f"{self.root} ({name})")
            reports.append(report)
            try:
                images = find_class_images(self.root, part.split, self.parts["train"].split, part.listed)
            except DataError as error:
                report.error(str(error))
                continue
            images.found.left_out = {}  # said already, or part of the other split
            check_class_images(images, report, progress=progress)
        return reports

    def counts(self) -> dict[str, int]:
        """Images by split."""
        return {split: len(part.files) for split, part in self.parts.items()}

    def per_class(self, split: str) -> dict[str, int]:
        """Images by class."""
        counts = Counter(Path(file).parts[0] for file in self.parts[split].files)
        return {name: counts[name] for name in self.classes}

    def image_sizes(self) -> np.ndarray:
        """(n, 2) widths and heights of training images, of at most 500."""
        part = self.parts["train"]
        sizes = []
        for file in part.files[:: max(1, len(part.files) // 500)]:
            path = self.root / part.split / file
            try:
                sizes.append(read_header(path).size)
            except Exception as error:  # noqa: BLE001 whatever a decoder makes of a damaged file
                raise DataError(f"image {path} cannot be read ({reason(error)}); repair or remove it") from None
        return np.array(sizes)


def find_class_tree(root: Path) -> ClassTree | None:
    """The data set of class folders in a folder; None if there is none.

    Raises:
        DataError: see `find_class_images`; also if there is only one class.
    """
    inside = folders(root)
    splits = {split_of(path.name): path for path in inside if is_split(path.name)}
    if "train" in splits and folders(splits["train"]):
        notes: list[str] = []
        classes = class_names(splits["train"])
        parts = {}
        for split in ("train", "val", "test"):
            if split in splits and folders(splits[split]):
                images = find_class_images(root, splits[split].name, splits["train"].name)
                notes += [f"{split}: left out {len(v)} {why}{some(v, 3)}" for why, v in images.found.left_out.items()]
                files = [file.relative_to(splits[split]).as_posix() for file in images.found.files]
                parts[split] = ClassPart(splits[split].name, files)
        layout = "class folders in splits"
    elif len(inside) > 1 and not splits and all(has_files(path) for path in inside):
        notes, classes = [], class_names(root)
        found = Found(root)
        by_class = images_by_class(root, classes, found)
        notes += [f"left out {len(v)} {why}{some(v, 3)}" for why, v in found.left_out.items()]
        files = [file.relative_to(root).as_posix() for of_class in by_class.values() for file in of_class]
        parts, layout = {"train": ClassPart("", files)}, "class folders"
    else:
        return None
    if len(classes) < 2:
        raise DataError(f"{root} has one class folder, {classes[0]}; a classifier needs two classes at least")
    if "val" not in parts:
        _split(root, parts, notes)
    return ClassTree(root, layout, {s: parts[s] for s in ("train", "val", "test") if s in parts}, classes, notes)


def _split(root: Path, parts: dict[str, ClassPart], notes: list[str]) -> None:
    """Hold out a part of each class for validation."""
    whole = parts["train"]
    folder = root / whole.split
    copies = equal_files([(name, folder / name) for name in whole.files])
    held: set[str] = set()
    by_class: dict[str, list[str]] = {}
    for name in whole.files:
        by_class.setdefault(Path(name).parts[0], []).append(name)
    for names in by_class.values():
        held |= hold_out(names, {name: first for name, first in copies.items() if first in names})
    lone = [name for name, names in by_class.items() if not held & set(names)]
    if lone:
        notes.append(f"{len(lone)} classes have one image, which is for training: validation lacks them{some(lone)}")
    if not held:
        raise DataError(f"{root} has one image per class; training and validation need two at least")
    crossing = [name for name, first in copies.items() if (name in held) != (first in held)]
    if crossing:
        notes.append(f"{len(crossing)} images of two classes are equal, byte by byte{some(crossing, 3)}")
    parts["train"] = ClassPart(whole.split, [name for name in whole.files if name not in held], whole=False)
    parts["val"] = ClassPart(whole.split, [name for name in whole.files if name in held], whole=False)
    notes.append(f"no validation split: {len(held)} of {len(whole.files)} images are held out ({RULE}, class by class)")
