"""A data set of objects in COCO's form: what is in it, its check, and what is written for training."""

import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from arm_images.errors import DataError

from ..check import check_coco, compare_categories
from ..check_report import Report, some
from .holdout import RULE, equal_files, hold_out


@dataclass
class Part:
    """One split.

    Attributes:
        content: of a COCO instance file, as `read_coco` returns it.
        images: folder that its file names are relative to.
        file: where the content is; None until it is written.
    """

    content: dict
    images: Path
    file: Path | None = None


@dataclass
class Instances:
    """A data set of objects with boxes, and perhaps masks.

    Attributes:
        root: the data set's folder.
        layout: what it was recognised as.
        parts: "train", "val" and perhaps "test".
        classes: names in the order of their labels.
        masks: whether every object has a mask.
        notes: sentences about what is odd, or was decided.
    """

    root: Path
    layout: str
    parts: dict[str, Part]
    classes: list[str]
    notes: list[str] = field(default_factory=list)
    masks: bool = False

    task = "detection"

    def __post_init__(self) -> None:
        objects = [a for part in self.parts.values() for a in part.content["annotations"] if not a.get("iscrowd")]
        bare = [annotation["id"] for annotation in objects if not annotation.get("segmentation")]
        self.masks = not bare
        if 0 < len(bare) < len(objects):
            self.notes.append(
                f"{len(bare)} of {len(objects)} objects have no mask, so boxes alone are trained; draw the missing "
                f"masks to train masks; annotation ids{some(bare)}"
            )
        if "train" not in self.parts:
            raise DataError(f"{self.root} has {' and '.join(self.parts)}, but no training split; name one split train")
        self._note_copies()
        if "val" not in self.parts:
            self._split()
        self._complete_categories()

    @property
    def needs_folder(self) -> bool:
        """Whether something has to be written before this trains."""
        return any(part.file is None for part in self.parts.values())

    def write(self, folder: Path) -> None:
        """Write the annotation files that do not exist yet into a folder, as SPLIT.json."""
        folder.mkdir(parents=True, exist_ok=True)
        for split, part in self.parts.items():
            if part.file is None:
                part.file = folder / f"{split}.json"
                part.file.write_text(json.dumps(part.content), encoding="utf-8")

    def check(self, progress: bool = False) -> list[Report]:
        """Check what will be trained, as `tools/prepare_data.py check coco` does; call `write` before."""
        reports = [
            check_coco(part.file, part.images, self.classes, progress=progress, masks=self.masks)
            for part in self.parts.values()
        ]
        compare_categories(reports)
        return reports

    # ------------------------------------------------------------------------------------------------- facts

    def counts(self) -> dict[str, int]:
        """Images by split."""
        return {split: len(part.content["images"]) for split, part in self.parts.items()}

    def per_class(self, split: str) -> dict[str, int]:
        """Objects by class."""
        content = self.parts[split].content
        names = {category["id"]: category["name"] for category in content["categories"]}
        counts = Counter(names[annotation["category_id"]] for annotation in content["annotations"])
        return {name: counts[name] for name in self.classes}

    def image_sizes(self) -> np.ndarray:
        """(n, 2) widths and heights of the training images."""
        return np.array([[image["width"], image["height"]] for image in self.parts["train"].content["images"]])

    def object_sides(self) -> np.ndarray:
        """Sides of the training objects, in pixels: square roots of the areas of their boxes."""
        boxes = [a["bbox"] for a in self.parts["train"].content["annotations"] if not a.get("iscrowd")]
        return np.array([math.sqrt(width * height) for _, _, width, height in boxes])

    # ------------------------------------------------------------------------------------------------ making

    def _note_copies(self) -> None:
        """Find images of equal bytes in several splits: the evaluation would count what was learned by heart."""
        train = [(i["file_name"], self._path("train", i)) for i in self.parts["train"].content["images"]]
        for split in self.parts.keys() - {"train"}:
            others = [(f"{split}: {i['file_name']}", self._path(split, i)) for i in self.parts[split].content["images"]]
            names = {name for name, _ in others}
            copies = {name: first for name, first in equal_files(train + others).items() if name in names}
            copies = [name for name, first in copies.items() if first not in names]
            if copies:
                self.notes.append(
                    f"{len(copies)} images of {split} are training images, byte by byte; remove them from one of the "
                    f"two, or {split} measures what was learned by heart{some(copies, 3)}"
                )

    def _path(self, split: str, image: dict) -> Path:
        return self.parts[split].images / image["file_name"]

    def _split(self) -> None:
        """Make a validation split of training images, by the rule of `holdout`."""
        whole = self.parts["train"]
        images = whole.content["images"]
        names = [image["file_name"] for image in images]
        if len(set(names)) < 2:
            raise DataError(f"{self.root} has {len(set(names))} image; training and validation need two at least")
        held = hold_out(names, equal_files([(name, whole.images / name) for name in names]))
        if not held:
            raise DataError(f"{self.root}: all {len(names)} images are copies of one; add others")
        for split, wanted in (("train", False), ("val", True)):
            chosen = [image for image in images if (image["file_name"] in held) == wanted]
            ids = {image["id"] for image in chosen}
            content = {**whole.content, "images": chosen}
            content["annotations"] = [a for a in whole.content["annotations"] if a["image_id"] in ids]
            self.parts[split] = Part(content, whole.images)
        self.notes.append(f"no validation split: {len(held)} of {len(names)} images are held out ({RULE})")
        if not all(part.content["annotations"] for part in self.parts.values()):
            raise DataError(
                f"{self.root}: the images held out for validation, or all others, have no objects; make the splits "
                "train and val yourself"
            )
        self.parts = {split: self.parts[split] for split in ("train", "val", "test") if split in self.parts}

    def _complete_categories(self) -> None:
        """Give every split the categories of the training split, which are the classes."""
        wanted = [c for c in self.parts["train"].content["categories"] if c["name"] in self.classes]
        for split, part in self.parts.items():
            names = {category["name"] for category in part.content["categories"]}
            absent = [category for category in wanted if category["name"] not in names]
            if absent:
                used = [c["id"] for c in part.content["categories"] if isinstance(c["id"], int)]
                first = max(used, default=0) + 1
                added = [{**c, "id": first + number} for number, c in enumerate(absent)]
                part.content["categories"] = part.content["categories"] + added
                part.file = None
                self.notes.append(f"{split} does not list the categories{some([c['name'] for c in absent])}; added")
            extra = sorted(names - set(self.classes))
            learnable = [n for n in extra if n not in unused_categories(part.content)]
            if learnable:
                self.notes.append(f"{split} has categories that train lacks: left out{some(learnable)}")


def unused_categories(content: dict) -> set[str]:
    """Names of the categories without an annotation."""
    used = {annotation["category_id"] for annotation in content["annotations"]}
    return {category["name"] for category in content["categories"] if category["id"] not in used}


def best_folder(names: list[str], candidates: list[Path]) -> tuple[Path, int]:
    """The folder that has the most of some files, the first of several, and how many it has."""
    sample = names if len(names) <= 200 else names[:: len(names) // 200]
    counts = [sum(os.path.isfile(folder / name) for name in sample) for folder in candidates]
    best = max(range(len(candidates)), key=lambda index: counts[index])
    return candidates[best], counts[best]
