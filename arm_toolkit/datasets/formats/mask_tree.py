"""A data set of images beside label maps: what is in it, its check, and what is written for training."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from arm_images.errors import DataError
from arm_images.pillow import Image

from ..check_ade import check_label_maps
from ..check_report import Report
from ..image_pairs import find_pairs
from ..label_maps import IGNORED
from .holdout import RULE, equal_files, hold_out
from .legend import Colour, Legend, find_legend
from .mask_folders import Pairs, find_listed, find_pair_folders, pair
from .mask_values import Meaning, Seen, interpret, look_at_maps, pack, read_map


@dataclass
class MapPart:
    """One split, as mmseg's BaseSegDataset reads it.

    Attributes:
        names: (image, label map) relative to the two folders.
        listed: a text file with the names to use; None uses all of the folder.
    """

    images: Path
    labels: Path
    names: list[tuple[str, str]]
    pixels: Counter = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    img_suffix: str = ".jpg"
    seg_map_suffix: str = ".png"
    listed: Path | None = None
    whole: bool = True  # all images of the folder are used


@dataclass
class LabelMaps:
    """A data set of images with label maps.

    Attributes:
        root, layout, parts, classes, notes: as in `Instances`.
        meaning: which class each stored value is.
        palette: a colour for each class.
    """

    root: Path
    layout: str
    parts: dict[str, MapPart]
    meaning: Meaning
    notes: list[str] = field(default_factory=list)

    task = "segmentation"

    def __post_init__(self) -> None:
        self.classes = self.meaning.classes
        self.palette = self.meaning.colours or voc_colours(len(self.classes))
        self.zero_ignored = self.meaning.zero_ignored
        self._convert = not self.meaning.as_stored
        for part in self.parts.values():
            ends = {_ends(image, label) for image, label in part.names}
            if len(ends) == 1:
                part.img_suffix, part.seg_map_suffix = ends.pop()
            else:  # the whole name of the image, and label maps that are called after it
                part.img_suffix, part.whole = "", False
                self._convert = True
        if self._convert:
            self.zero_ignored = False

    @property
    def needs_folder(self) -> bool:
        """Whether something has to be written before this trains."""
        return self._convert or not all(part.whole for part in self.parts.values())

    def write(self, folder: Path) -> None:
        """Write label maps in 8 bits where they are stored otherwise, and lists of the splits where folders do not
        make them."""
        folder.mkdir(parents=True, exist_ok=True)
        for split, part in self.parts.items():
            if not part.whole:
                part.listed = folder / f"{split}.txt"
                names = [image[: len(image) - len(part.img_suffix)] for image, _ in part.names]
                part.listed.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
            if self._convert:
                self._write_maps(part, folder / "annotations" / split)

    def _write_maps(self, part: MapPart, out: Path) -> None:
        table = _table(self.meaning.classes_of)
        # all 256 colours: of a shorter palette Pillow writes fewer bits, in which `IGNORED` becomes another label
        padded = [*self.palette, *voc_colours(256)[len(self.palette) :]]
        for image, label in part.names:
            stored, _ = read_map(part.labels / label)
            classes = table[pack(stored) if stored.ndim == 3 else stored]
            target = out / f"{image[: len(image) - len(part.img_suffix)]}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            written = Image.fromarray(classes)
            written.putpalette([value for colour in padded for value in colour])
            written.save(target)
        part.labels, part.seg_map_suffix = out, ".png"

    def check(self, progress: bool = False) -> list[Report]:
        """Check what will be trained, as `tools/prepare_data.py check ade` does; call `write` before."""
        report = Report(str(self.root), facts={"pairs": {}, "pixel_share": {}})
        for split, part in self.parts.items():
            pairs = find_pairs(part.images, part.labels, part.img_suffix, part.seg_map_suffix, part.listed)
            pairs.unused, pairs.found.left_out, pairs.labels_left_out = [], {}, {}  # said already
            ends = part.img_suffix, part.seg_map_suffix
            check_label_maps(report, split, pairs, len(self.classes), self.zero_ignored, ends, progress=progress)
        return [report]

    def counts(self) -> dict[str, int]:
        """Images by split."""
        return {split: len(part.names) for split, part in self.parts.items()}

    def per_class(self, split: str) -> dict[str, float]:
        """Percent of all pixels by class, and of those that are ignored."""
        pixels, total = self.parts[split].pixels, sum(self.parts[split].pixels.values())
        counts: Counter = Counter()
        for value, count in pixels.items():
            counts[self.meaning.classes_of.get(value, IGNORED)] += count
        shares = {name: 100 * counts[label] / total for label, name in enumerate(self.classes)}
        return shares | ({"(ignored)": 100 * counts[IGNORED] / total} if counts[IGNORED] else {})

    def image_sizes(self) -> np.ndarray:
        """(n, 2) widths and heights of the training images."""
        return np.array(self.parts["train"].sizes)


def find_label_maps(
    root: Path, legend: Legend | None, ignore_zero: bool = False, progress: bool = False
) -> LabelMaps | None:
    """The data set of images beside label maps in a folder; None if there is none.

    Args:
        legend: names of the classes; None looks for a file that gives them.
        ignore_zero: a stored 0 is ignored and k is the k-th class.

    Raises:
        DataError: see `pair`, `look_at_maps` and `interpret`.
    """
    found = find_pair_folders(root) if root.is_dir() else None
    if found is None:
        return None
    layout, folders = found
    notes: list[str] = []
    pairs = {split: pair(images, labels, notes) for split, (images, labels) in folders.items()}
    parts = _parts(root, pairs, notes)
    legend = legend or find_legend(root) or next((f for p in parts.values() if (f := find_legend(p.images))), None)
    every = Seen()
    for split, part in parts.items():
        seen = look_at_maps([(part.images / image, part.labels / label) for image, label in part.names], progress)
        part.pixels, part.sizes = seen.pixels, seen.sizes
        if every.pixels and every.coloured != seen.coloured:
            raise DataError(f"{root}: the label maps of {split} and those of train differ: colours and numbers")
        every.add(seen)
    meaning = interpret(every, legend, root, ignore_zero)
    notes.append(meaning.note)
    return LabelMaps(root, layout, parts, meaning, notes)


def _parts(root: Path, pairs: dict[str, Pairs], notes: list[str]) -> dict[str, MapPart]:
    """The splits: those of the folders, those of lists, or a part that is held out for validation."""
    if "" in pairs:
        whole = pairs.pop("")
        listed = find_listed(root)
        if "train" in listed:
            by_stem = {str(Path(image).with_suffix("")): (image, label) for image, label in whole.names}
            absent = [name for names in listed.values() for name in names if name not in by_stem]
            if absent:
                raise DataError(
                    f"{root}: a list of a split names {absent[0]}, which {whole.images} does not have with a label map "
                    f"({len(absent)} such names); correct the list"
                )
            parts = {
                split: MapPart(whole.images, whole.labels, [by_stem[name] for name in names], whole=False)
                for split, names in listed.items()
            }
            notes.append(f"splits from lists of names: {', '.join(listed)}")
        else:
            whole.require_all()
            parts = {"train": MapPart(whole.images, whole.labels, whole.names)}
    else:
        for split_pairs in pairs.values():
            split_pairs.require_all()
        parts = {split: MapPart(p.images, p.labels, p.names) for split, p in pairs.items()}
    if "train" not in parts:
        raise DataError(f"{root} has {' and '.join(parts)}, but no training split; name one split train")
    if "val" not in parts:
        whole = parts["train"]
        names = [image for image, _ in whole.names]
        held = hold_out(names, equal_files([(name, whole.images / name) for name in names]))
        if not held:
            raise DataError(f"{root}: {len(names)} image, or copies of one; training and validation need two at least")
        for split, wanted in (("train", False), ("val", True)):
            chosen = [entry for entry in whole.names if (entry[0] in held) == wanted]
            parts[split] = MapPart(whole.images, whole.labels, chosen, whole=False)
        notes.append(f"no validation split: {len(held)} of {len(names)} images are held out ({RULE})")
    return {split: parts[split] for split in ("train", "val", "test") if split in parts}


def _ends(image: str, label: str) -> tuple[str, str]:
    """What the names of an image and its label map end in, beyond what they have in common."""
    stems = [str(Path(name).with_suffix("")) for name in (image, label)]
    common = len(os.path.commonprefix(stems))
    return image[common:], label[common:]


def _table(classes_of: dict) -> np.ndarray:
    """Class by stored number (256,), or by packed colour (2^24,), uint8."""
    coloured = isinstance(next(iter(classes_of)), tuple)
    table = np.full(2**24 if coloured else 256, IGNORED, dtype=np.uint8)
    for value, label in classes_of.items():
        table[int(pack(np.array(value))) if coloured else value] = label
    return table


def voc_colours(count: int) -> list[Colour]:
    """Distinct colours, as Pascal VOC numbers them: the bits of k, three at a time, from the highest bit down."""
    colours = []
    for number in range(count):
        colour = [0, 0, 0]
        for step in range(8):
            for channel in range(3):
                colour[channel] |= (number >> (3 * step + channel) & 1) << (7 - step)
        colours.append(tuple(colour))
    return colours
