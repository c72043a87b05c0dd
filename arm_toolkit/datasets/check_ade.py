"""Checks images and label maps in ADE20K's layout."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from arm_images.errors import DataError
from arm_images.read import read_labels

from .check_images import _look_at, read_dense
from .check_report import Report, _by, _reason

ADE_SPLITS = ("training", "validation")


def check_ade(
    root: str | Path,
    num_classes: int,
    splits: Sequence[str] = ADE_SPLITS,
    decode: bool = False,
    progress: bool = False,
) -> Report:
    """Check a folder in ADE20K layout: `images/SPLIT/NAME.jpg`, `annotations/SPLIT/NAME.png`.

    Args:
        root: folder with `images` and `annotations`.
        num_classes: number of classes C; stored labels may be 0 (ignored), 1..C, and 255
            (ignored as well, by `reduce_zero_label`).
        splits: folders to check.
        decode: read every picture too (slow); labels are always read.
        progress: show a bar on stderr.

    Returns:
        Facts: by split, `pairs` and `pixel_share` (C + 1 shares of all pixels, by stored
        value; 255 counts as 0).
    """
    root = Path(root)
    report = Report(str(root), facts={"pairs": {}, "pixel_share": {}})
    for split in splits:
        folders = root / "images" / split, root / "annotations" / split
        gone = [folder for folder in folders if not folder.is_dir()]
        for folder in gone:
            report.error(f"{folder} is missing; the layout is images/{split}, annotations/{split}")
        if not gone:
            _check_ade_split(*folders, split, num_classes, report, decode, progress)
    return report


def _check_ade_split(
    images: Path,
    labels: Path,
    split: str,
    num_classes: int,
    report: Report,
    decode: bool,
    progress: bool,
) -> None:
    image_names = {path.stem for path in images.glob("*.jpg")}
    label_names = {path.stem for path in labels.glob("*.png")}
    alone = sorted(image_names - label_names)
    report.error(f"{split}: {len(alone)} images without a label map (.png)", alone)
    alone = sorted(label_names - image_names)
    report.error(f"{split}: {len(alone)} label maps without an image (.jpg)", alone)
    others = sorted(path.name for path in images.iterdir() if path.suffix != ".jpg")
    report.note(f"{split}: {len(others)} files in {images} are not .jpg, not used", others)
    others = sorted(path.name for path in labels.iterdir() if path.suffix != ".png")
    report.note(f"{split}: {len(others)} files in {labels} are not .png, not used", others)
    names = sorted(image_names & label_names)
    if not names:
        report.error(f"{split}: no pairs; images are .jpg, label maps .png of the same name")
        return

    counts = np.zeros(256, dtype=np.int64)  # pixels by stored value
    faults, values, sizes, turned = [], [], [], []
    files = [images / f"{name}.jpg" for name in names]
    for image, look in _look_at(files, read_dense if decode else None, progress):
        path = (labels / image.name).with_suffix(".png")
        if look.fault:
            faults.append(f"{image.name} ({look.fault})")
        turned += [image.name] * look.turned
        try:
            label = read_labels(path)
        except DataError as error:
            values.append(f"{path.name} ({error})")
            continue
        except Exception as error:  # noqa: BLE001 whatever a decoder makes of a damaged file
            faults.append(f"{path.name} ({_reason(error)})")
            continue
        size = label.shape[::-1]
        if not look.fault and look.size != size:
            sizes.append(f"{path.stem} (image {_by(look.size)}, labels {_by(size)})")
        here = np.bincount(label.ravel(), minlength=256)
        counts += here
        wrong = [value for value in np.flatnonzero(here) if num_classes < value != 255]
        if wrong:
            values.append(f"{path.name} ({', '.join(str(value) for value in wrong[:3])})")
    report.error(f"{split}: {len(faults)} files cannot be decoded", faults)
    report.error(f"{split}: {len(sizes)} pairs differ in size (both upright)", sizes)
    report.error(
        f"{split}: {len(values)} label maps hold something other than 0 (ignored) and 1..{num_classes}",
        values,
    )
    report.note(
        f"{split}: {len(turned)} images have an EXIF orientation; they are read upright, and their label maps must fit "
        "the upright image",
        turned,
    )
    _check_labelled(split, counts, report)
    _describe_ade_split(split, len(names), counts, num_classes, report)


def _check_labelled(split: str, counts: np.ndarray, report: Report) -> None:
    """Refuse a split in which every pixel is ignored."""
    if counts.sum() == 0 or counts[1:255].any():
        return
    both = bool(counts[0] and counts[255])
    binary = "; a map of 0 and 255 must be stored as 1 and 2 (or as 0 and 1 with reduce_zero_label=False)"
    stored = "0 and 255" if both else "0" if counts[0] else "255"
    report.error(
        f"{split}: no labelled pixel: all are {stored}, which are ignored; store class k as k + 1{binary * both}"
    )


def _describe_ade_split(split: str, pairs: int, counts: np.ndarray, num_classes: int, report: Report) -> None:
    counts = counts.copy()
    ignored_255 = int(counts[255]) if num_classes < 255 else 0
    if ignored_255:
        counts[0], counts[255] = counts[0] + ignored_255, 0
        report.note(f"{split}: {ignored_255} pixels are 255; they count as ignored, as 0")
    share = counts[: num_classes + 1] / max(counts.sum(), 1)
    report.facts["pairs"][split] = pairs
    report.facts["pixel_share"][split] = share.tolist()
    absent = (1 + np.flatnonzero(share[1:] == 0)).tolist()
    common = 1 + np.argsort(-share[1:], kind="stable")[: num_classes - len(absent)][:12]
    shares = ", ".join(f"{value}: {share[value]:.1%}" for value in common)
    report.note(f"{split}: {pairs} pairs; pixels by stored value, most common first: {shares}; ignored: {share[0]:.1%}")
    report.note(f"{split}: {len(absent)} of {num_classes} classes do not occur", absent)
