"""Data sets that evaluate ImageNet-1k classifiers: validation, and the robustness sets V2, ReaL, A, R and Sketch.

They are read in their public layouts from one root folder:

    val      val/{wnid}/*
    v2       imagenetv2-matched-frequency-format-val/{0..999}/*
    real     real.json, and the images ILSVRC2012_val_* in val/, flat or in class folders
    a        imagenet-a/{wnid}/*
    r        imagenet-r/{wnid}/*
    sketch   sketch/{wnid}/* or imagenet-sketch/{wnid}/*

Legend: B batch.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from torch import Tensor
from torch.utils.data import Dataset

from arm_images.errors import DataError
from arm_images.find import EXTENSIONS, Found, is_note_of_macos
from arm_images.pillow import Image
from arm_images.read import read_rgb, reason

from .class_images import images_by_class

TITLES = {
    "val": "ImageNet val",
    "v2": "ImageNet-V2",
    "real": "ImageNet-ReaL",
    "a": "ImageNet-A",
    "r": "ImageNet-R",
    "sketch": "ImageNet-Sketch",
}
ROBUSTNESS = ("v2", "real", "a", "r", "sketch")
NUM_CLASSES = 1000
PUBLISHED = dict(val=50_000, v2=10_000, a=7_500, r=30_000, sketch=50_889)  # images; ReaL's follow from its labels
VAL_IMAGES = 50_000
_FOLDERS = dict(
    val=("val",),
    v2=("imagenetv2-matched-frequency-format-val",),
    a=("imagenet-a",),
    r=("imagenet-r",),
    sketch=("sketch", "imagenet-sketch"),
)
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")
_UNPACK = "unpack the archive again"


class SetNotFound(DataError):
    """A set's folder or label file does not exist."""


class ImageNetSet(Dataset):
    """Images, each with one or several correct classes.

    Items are (transformed image, correct (1000,) bool).

    Args:
        name: key of `TITLES`.
        samples: (path, indices of the correct classes) for each image.
        transform: from an RGB image to a tensor.
        classes: class indices that a prediction may take; None for all.
        published: number of images of the complete set.

    Raises:
        DataError: on access, for an image that cannot be decoded.
    """

    def __init__(
        self,
        name: str,
        samples: list[tuple[Path, tuple[int, ...]]],
        transform: Callable[[Image.Image], Tensor],
        classes: list[int] | None,
        published: int,
    ) -> None:
        self.name, self.samples, self.transform, self.published = name, samples, transform, published
        self.classes = list(range(NUM_CLASSES)) if classes is None else classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        path, labels = self.samples[i]
        try:
            image = read_rgb(path)
        except Exception as error:  # noqa: BLE001 a decoder can raise anything
            raise DataError(f"image {path} cannot be read ({reason(error)}); {_UNPACK}") from None
        correct = torch.zeros(NUM_CLASSES, dtype=torch.bool)
        correct[list(labels)] = True
        return self.transform(image), correct


@cache
def class_indices() -> dict[str, int]:
    """wnid -> class index: the wnid's position among the sorted wnids of ImageNet-1k."""
    return {wnid: i for i, wnid in enumerate(sorted(ImageNetInfo("imagenet-1k").label_names()))}


def open_set(
    name: str, root: str | Path, transform: Callable[[Image.Image], Tensor], val: str | Path | None = None
) -> ImageNetSet:
    """List the images and labels of one set without opening any image.

    Args:
        name: key of `TITLES`.
        root: folder of all sets.
        transform: see `ImageNetSet`.
        val: folder of the ImageNet validation images; `root`/val if None.

    Raises:
        SetNotFound: if the set does not exist.
        DataError: if it is not in its public layout, or contains no images.
    """
    root = Path(root)
    folders = [root / folder for folder in _FOLDERS["val" if name == "real" else name]]
    if name in ("val", "real") and val is not None:
        folders = [Path(val)]
    labels = _read_real(root / "real.json") if name == "real" else None
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        where = " or ".join(map(str, folders))
        what = "its images" if name == "real" else "the set"
        raise SetNotFound(f"{TITLES[name]}: {where} does not exist; unpack {what} there")
    if name == "real":
        return _open_real(folder, labels, transform)
    samples = _class_folders(folder, _numbers() if name == "v2" else class_indices())
    classes = sorted({i for _, (i,) in samples}) if name in ("a", "r") else None
    return ImageNetSet(name, samples, transform, classes, PUBLISHED[name])


def _numbers() -> dict[str, int]:
    return {str(i): i for i in range(NUM_CLASSES)}


def _class_folders(root: Path, indices: dict[str, int]) -> list[tuple[Path, tuple[int]]]:
    """Samples of a tree with one folder per class, in class order; other files in `root` are ignored."""
    folders = [path for path in _visible(root) if path.is_dir()]
    like = f"such as {next(iter(indices))}"
    if not folders:
        raise DataError(f"{root} has no class folders {like}; sort the images into them, or {_UNPACK}")
    for folder in folders:
        if folder.name not in indices:
            raise DataError(f"{folder} is not a class of ImageNet-1k {like}; remove it, or {_UNPACK}")
    found, samples = Found(root), []
    for name, images in images_by_class(root, sorted((f.name for f in folders), key=indices.get), found).items():
        if not images:
            raise DataError(f"{root / name} has no images; {_UNPACK}{found.remainder()}")
        samples += [(path, (indices[name],)) for path in images]
    found.files = [path for path, _ in samples]
    found.log()
    return samples


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".") and not is_note_of_macos(path)]


def _read_real(path: Path) -> list[list[int]]:
    """ReaL's labels: a list of class indices, possibly empty, for each of the 50,000 validation images."""
    remedy = "fetch real.json of google-research/reassessed-imagenet"
    if not path.is_file():
        raise SetNotFound(f"ImageNet-ReaL: {path} does not exist; {remedy}")
    try:
        labels = json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not text
        raise DataError(f"{path} is not a complete JSON file ({error}); {remedy} again") from None
    if not isinstance(labels, list) or len(labels) != VAL_IMAGES:
        found = f"a list of {len(labels)}" if isinstance(labels, list) else f"a {type(labels).__name__}"
        raise DataError(f"{path} holds {found}, not a list of {VAL_IMAGES} lists of classes; {remedy} again")
    for number, classes in enumerate(labels, 1):
        if not isinstance(classes, list) or not all(type(i) is int and 0 <= i < NUM_CLASSES for i in classes):
            raise DataError(
                f"{path}: entry {number} is {classes!r:.50}, not a list of classes 0 to {NUM_CLASSES - 1}; "
                f"{remedy} again"
            )
    return labels


def _open_real(folder: Path, labels: list[list[int]], transform: Callable[[Image.Image], Tensor]) -> ImageNetSet:
    files = {}
    for path in (*folder.glob("ILSVRC2012_val_*"), *folder.glob("*/ILSVRC2012_val_*")):
        number = _VAL_NAME.match(path.name)
        if number and path.suffix.lower() in EXTENSIONS:
            files[int(number[1])] = path
    samples = [(files[n], tuple(classes)) for n, classes in enumerate(labels, 1) if classes and n in files]
    if not samples:
        raise DataError(
            f"{folder} has no images ILSVRC2012_val_00000001.JPEG to {VAL_IMAGES:08d} with labels in real.json, flat "
            "or in class folders; unpack the ImageNet validation images there"
        )
    return ImageNetSet("real", samples, transform, None, sum(map(bool, labels)))
