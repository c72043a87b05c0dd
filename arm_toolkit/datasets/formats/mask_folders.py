"""Finds images beside label maps, in the folders that people keep them in.

| layout | example |
| --- | --- |
| folder of images, folder of label maps, splits inside | `images/train/`, `masks/train/` |
| splits, with both folders inside | `train/images/`, `train/masks/` |
| splits, each with a second folder | `train/`, `trainannot/`, `train_labels/`, `train_masks/` |
| both folders, no splits (or the lists of Pascal VOC) | `JPEGImages/`, `SegmentationClass/` |
| images and label maps in one folder | `train/NAME.jpg`, `train/NAME_mask.png` |

A label map has its image's name, or that and a suffix such as `_mask`, the same for all.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from arm_images.errors import DataError
from arm_images.find import EXTENSIONS, Found, image_files
from arm_images.lists import read_list

from ..check_report import some
from .names import IMAGES, LABELS, folders, has_files, is_split, named, split_of

SECOND = ("annot", "_annot", "_annotations", "_labels", "labels", "_masks", "_mask", "masks", "_gt", "_seg")
MAPS = (".png", ".bmp", ".tif", ".tiff")
SAME_FOLDER = ("_mask", "_masks", "_label", "_labels", "_seg", "_gt", "_l", "_lab", "-mask")  # suffixes, lower case


@dataclass
class Pairs:
    """Images with their label maps.

    Attributes:
        images, labels: their folders.
        names: (image, label map) relative to these, in the order of the images' names.
        unlabelled: (image, label map that it would have) where that does not exist.
    """

    images: Path
    labels: Path
    names: list[tuple[str, str]]
    unlabelled: list[tuple[str, str]]

    def require_all(self) -> None:
        """Refuse images without a label map.

        Raises:
            DataError: naming the first.
        """
        if self.unlabelled:
            image, label = self.unlabelled[0]
            raise DataError(
                f"{len(self.unlabelled)} of {len(self.unlabelled) + len(self.names)} images in {self.images} have no "
                f"label map, first {image} ({self.labels / label} does not exist); add label maps or remove the images"
            )


def find_pair_folders(root: Path) -> tuple[str, dict[str, tuple[Path, Path]]] | None:
    """What a tree is called in the table above, and (images, label maps) by split ("" if it has none), or None."""
    inside = folders(root)
    images, labels = named(inside, IMAGES), _labels_in(inside)
    if images is not None and labels is not None:
        splits = {}
        for folder in folders(images):
            if is_split(folder.name):
                same = [path for path in folders(labels) if split_of(path.name) == split_of(folder.name)]
                if same:
                    splits[split_of(folder.name)] = (folder, same[0])
        return "folders of images and of label maps", splits or {"": (images, labels)}
    splits, layout = {}, ""
    for folder in inside:
        if not is_split(folder.name):
            continue
        split, within = split_of(folder.name), folders(folder)
        pair = named(within, IMAGES), _labels_in(within)
        second = named(inside, [folder.name.lower() + end for end in SECOND])
        if None not in pair:
            splits[split], layout = pair, "splits with folders of images and of label maps"
        elif second is not None and _holds_maps(second):
            splits[split], layout = (folder, second), "splits with folders of label maps beside them"
        elif _is_mixed(folder):
            splits[split], layout = (folder, folder), "images and label maps in one folder"
    if not splits and _is_mixed(root):
        splits, layout = {"": (root, root)}, "images and label maps in one folder"
    return (layout, splits) if splits else None


def _labels_in(inside: list[Path]) -> Path | None:
    """The folder of label maps: one of the usual names, with images in it."""
    return named([path for path in inside if _holds_maps(path)], LABELS)


def _holds_maps(folder: Path) -> bool:
    return has_files(folder, (*MAPS, ".jpg", ".jpeg"))  # a JPEG is refused later, with its name


def _is_mixed(folder: Path) -> bool:
    """Whether images and label maps of the same names with a suffix lie in one folder."""
    stems = [path.stem.lower() for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS]
    known = set(stems)
    return any(stem.endswith(end) and stem[: -len(end)] in known for stem in stems for end in SAME_FOLDER)


def find_listed(root: Path) -> dict[str, list[str]]:
    """The names in Pascal VOC's lists of splits (`ImageSets/Segmentation/train.txt`) or in `train.txt`, by split."""
    found = {}
    for folder in (root / "ImageSets" / "Segmentation", root / "splits", root):
        for file in sorted(folder.glob("*.txt")) if folder.is_dir() else ():
            if is_split(file.stem) and split_of(file.stem) not in found:
                found[split_of(file.stem)] = [re.sub(r"\.\w{3,4}$", "", line) for line in read_list(file)]
        if found:
            return found
    return found


def pair(images: Path, labels: Path, notes: list[str]) -> Pairs:
    """Pair the images of one folder with the label maps of another.

    Raises:
        DataError: if there are none.
    """
    found, of_labels = Found(images), Found(labels)
    files = [path.relative_to(images) for path in image_files(images, found)]
    maps = [path.relative_to(labels) for path in image_files(labels, of_labels)]
    if images == labels:
        ends = Counter(end for path in files for end in SAME_FOLDER if path.stem.lower().endswith(end))
        end = ends.most_common(1)[0][0]
        maps = [path for path in files if path.stem.lower().endswith(end)]
        files = [path for path in files if not path.stem.lower().endswith(end)]
    if not files or not maps:
        raise DataError(f"{images if not files else labels} has no images{found.remainder()}; add them")
    by_stem = {str(path.with_suffix("")): path for path in maps}
    image_end, map_end = _ends([str(path.with_suffix("")) for path in files], list(by_stem))
    names, alone = [], []
    for path in files:
        stem = str(path.with_suffix(""))
        label = by_stem.pop(stem[: len(stem) - len(image_end)] + map_end, None)
        if label is None:
            alone.append((str(path), f"{stem[: len(stem) - len(image_end)]}{map_end}.png"))
        else:
            names.append((str(path), str(label)))
    if by_stem:
        notes.append(f"{len(by_stem)} label maps in {labels} have no image: left out{some(sorted(by_stem), 3)}")
    for left in (found.left_out, of_labels.left_out if images != labels else {}):
        notes += [f"left out {len(paths)} {why}{some(paths, 3)}" for why, paths in left.items()]
    return Pairs(images, labels, names, alone)


def _ends(images: list[str], maps: list[str]) -> tuple[str, str]:
    """What the names of images and of label maps end in, beyond what they have in common: of most of some images."""
    known = set(maps)
    some_images = sorted(images)[:: max(1, len(images) // 20)]
    if any(name in known for name in some_images):
        return "", ""
    return Counter(_ends_of(name, maps) for name in some_images).most_common(1)[0][0]


def _ends_of(image: str, maps: list[str]) -> tuple[str, str]:
    close = [name for name in maps if name.startswith(image)]
    if close:
        return "", min(close, key=_likely)[len(image) :]
    for cut in range(len(image) - 1, 0, -1):  # Cityscapes: a_leftImg8bit, a_gtFine_labelIds
        close = [name for name in maps if name.startswith(image[:cut])]
        if close and image[cut] in "_-." and not image[cut + 1 : cut + 2].isdecimal():
            return image[cut:], min(close, key=_likely)[cut:]
    return "", ""


def _likely(name: str) -> tuple[bool, bool, int]:
    """Orders the label maps of one image: Cityscapes has training numbers, all numbers, instances and colours."""
    return "labelTrainIds" not in name, "labelIds" not in name, len(name)
