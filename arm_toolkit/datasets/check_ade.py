"""Checks images and label maps in ADE20K's layout."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from arm_images.errors import DataError
from arm_images.read import read_labels

from .check_report import Report, by, reason
from .image_pairs import ImagePairs, find_pairs
from .label_maps import IGNORED, class_numbers, outside
from .look import look_at, note_turned, read_dense

ADE_SPLITS = ("training", "validation")


def check_ade(
    root: str | Path,
    num_classes: int,
    splits: Sequence[str] = ADE_SPLITS,
    decode: bool = False,
    progress: bool = False,
    img_suffix: str = ".jpg",
    seg_map_suffix: str = ".png",
    reduce_zero_label: bool = True,
    listed: Path | None = None,
) -> Report:
    """Check a folder in ADE20K layout: `images/SPLIT/NAME.jpg`, `annotations/SPLIT/NAME.png`.

    Args:
        root: folder with `images` and `annotations`.
        num_classes: number of classes C.
        splits: folders to check.
        decode: read every image too (slow); label maps are always read.
        progress: show a bar on stderr.
        img_suffix, seg_map_suffix: ends of the names.
        listed: a text file with the names of the images to use, as the data set's `ann_file`.
        reduce_zero_label: labels may be 0 (ignored), 1 to C, and 255 (ignored); if False 0 to C - 1, and 255.

    Returns:
        Facts: by split, `pairs` and `pixel_share` (C + 1 shares of all pixels: ignored, and the classes in their
        order).
    """
    root = Path(root)
    report = Report(str(root), facts={"pairs": {}, "pixel_share": {}})
    unseen = 0
    for split in splits:
        folders = root / "images" / split, root / "annotations" / split
        gone = [folder for folder in folders if not folder.is_dir()]
        for folder in gone:
            report.error(f"{folder} is missing; the layout is images/{split}, annotations/{split}")
        if gone:
            continue
        try:
            pairs = find_pairs(*folders, img_suffix, seg_map_suffix, listed)
        except DataError as error:
            report.error(f"{split}: {error}")
            continue
        ends = img_suffix, seg_map_suffix
        unseen += check_label_maps(report, split, pairs, num_classes, reduce_zero_label, ends, decode, progress)
    report.not_decoded(unseen)
    return report


def check_label_maps(
    report: Report,
    split: str,
    pairs: ImagePairs,
    num_classes: int,
    reduce_zero_label: bool,
    ends: tuple[str, str],
    decode: bool = False,
    progress: bool = False,
) -> int:
    """Check the images and label maps of one split, wherever they lie.

    Args:
        report: what is found is added to it, with the facts of `check_ade`.
        split: its name.
        ends: of the names of images and label maps.

    Returns:
        the number of images whose pixels were not read.
    """
    return _Split(split, num_classes, reduce_zero_label, ends, report).check(pairs, decode, progress)


@dataclass
class _Split:
    """Goes over the pairs of a split and collects what is wrong."""

    name: str
    num_classes: int
    zero_ignored: bool
    ends: tuple[str, str]  # of the names of images and label maps
    report: Report
    faults: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)

    def check(self, pairs: ImagePairs, decode: bool, progress: bool) -> int:
        """Check all pairs; returns the number of images whose pixels were not read."""
        self._compare_names(pairs)
        gone = set(pairs.unlabelled)
        label_maps = {Path(i): Path(k) for i, k in zip(pairs.images, pairs.label_maps, strict=True) if i not in gone}
        if not label_maps:
            self.report.error(f"{self.name}: no pairs; an image and its label map have the same name")
            return 0
        stored, unseen = np.zeros(256, dtype=np.int64), 0
        for image, look in look_at(list(label_maps), read_dense, decode, progress):
            unseen += not look.decoded
            if look.fault:
                self.faults.append(f"{image.name} ({look.fault})")
            self.turned += [image.name] * look.turned
            labels = self._read(label_maps[image])
            if labels is None:
                continue
            if not look.fault and look.size != labels.shape[::-1]:
                self.sizes.append(f"{image.stem} (image {by(look.size)}, labels {by(labels.shape[::-1])})")
            stored += np.bincount(labels.ravel(), minlength=256)
        self._report(stored, len(label_maps))
        return unseen

    def _compare_names(self, pairs: ImagePairs) -> None:
        report, alone = self.report, [_stem(image) for image in pairs.unlabelled]
        report.error(f"{self.name}: {len(alone)} images without a label map ({self.ends[1]})", alone)
        alone = [_stem(file) for file in pairs.unused]
        report.error(f"{self.name}: {len(alone)} label maps without an image ({self.ends[0]})", alone)
        report.left_out(pairs.found.left_out, f"{self.name}: {pairs.found.source}: ")
        report.left_out(pairs.labels_left_out, f"{self.name}: label maps: ")

    def _read(self, path: Path) -> np.ndarray | None:
        try:
            labels = read_labels(path)
        except DataError as error:
            self.values.append(f"{path.name} ({error})")
            return None
        except Exception as error:  # noqa: BLE001 whatever a decoder makes of a damaged file
            self.faults.append(f"{path.name} ({reason(error)})")
            return None
        wrong = np.unique(outside(class_numbers(labels, self.zero_ignored), self.num_classes))
        if wrong.size:
            self.values.append(f"{path.name} ({', '.join(str(int(value) + self.zero_ignored) for value in wrong[:3])})")
        return labels

    def _report(self, stored: np.ndarray, pairs: int) -> None:
        report, split = self.report, self.name
        allowed = f"0 (ignored) and 1..{self.num_classes}"
        if not self.zero_ignored:
            allowed = f"0..{self.num_classes - 1} and {IGNORED} (ignored)"
        report.error(f"{split}: {len(self.faults)} files cannot be decoded", self.faults)
        report.error(f"{split}: {len(self.sizes)} pairs differ in size (both upright)", self.sizes)
        report.error(f"{split}: {len(self.values)} label maps hold something other than {allowed}", self.values)
        note_turned(report, [f"{split}/{name}" for name in self.turned], ", and label maps must fit that")
        counts = np.zeros(257, dtype=np.int64)  # ignored pixels, and pixels by class
        np.add.at(counts, 1 + class_numbers(np.arange(256, dtype=np.uint8), self.zero_ignored).astype(int), stored)
        counts[0] = counts[1 + IGNORED]
        self._require_labelled(stored, counts)
        if self.zero_ignored and stored[IGNORED]:
            report.note(f"{split}: {stored[IGNORED]} pixels are {IGNORED}; they count as ignored, as 0")
        self._describe(counts[: self.num_classes + 1], pairs)

    def _require_labelled(self, stored: np.ndarray, counts: np.ndarray) -> None:
        """Refuse a split in which every pixel is ignored, and binary maps of 0 and 255."""
        values = " and ".join(str(value) for value in np.flatnonzero(stored))
        binary = "; a map of 0 and 255 must be stored as 1 and 2 (or as 0 and 1 with reduce_zero_label=False)"
        binary = binary if values == "0 and 255" else ""
        if stored.sum() and counts[0] == stored.sum():
            remedy = f"store class k as k{' + 1' * self.zero_ignored}"
            self.report.error(f"{self.name}: no labelled pixel: all are {values}, which are ignored; {remedy}{binary}")
        elif binary:
            self.report.error(f"{self.name}: all pixels are {values}, and {IGNORED} is ignored{binary}")

    def _describe(self, counts: np.ndarray, pairs: int) -> None:
        """Note how often each stored value occurs; counts (C + 1,) of ignored pixels and classes."""
        share = counts / max(counts.sum(), 1)
        self.report.facts["pairs"][self.name] = pairs
        self.report.facts["pixel_share"][self.name] = share.tolist()
        first = int(self.zero_ignored)  # the stored value of the first class
        absent = (first + np.flatnonzero(share[1:] == 0)).tolist()
        common = np.argsort(-share[1:], kind="stable")[: self.num_classes - len(absent)][:12]
        shares = ", ".join(f"{first + k}: {share[1 + k]:.1%}" for k in common)
        self.report.note(
            f"{self.name}: {pairs} pairs; pixels by stored value, most common first: {shares}; ignored: {share[0]:.1%}"
        )
        self.report.note(f"{self.name}: {len(absent)} of {self.num_classes} classes do not occur", absent)


def _stem(path: str | Path) -> str:
    return os.path.splitext(os.path.basename(path))[0]
