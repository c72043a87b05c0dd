"""Finds images with their label maps, for training, evaluation and the check of data."""

import os
from dataclasses import dataclass
from pathlib import Path

from arm_images.errors import DataError
from arm_images.find import Found, image_files
from arm_images.lists import read_list


@dataclass
class ImagePairs:
    """Images and label maps of the same names, in the order of the images' paths or of a list.

    Attributes:
        images, label_maps: paths, as mmseg writes them; a label map may not exist.
        found: the images, and what of their folder is left out.
        labels_left_out: files in the folder of label maps that are none, by reason.
        unlabelled: the images whose label map does not exist.
        unused: the label maps without an image.
    """

    images: list[str]
    label_maps: list[str]
    found: Found
    labels_left_out: dict[str, list]
    unlabelled: list[str]
    unused: list[Path]

    def require_labels(self) -> None:
        """Refuse images without a label map.

        Raises:
            DataError: naming the first.
        """
        if self.unlabelled:
            wanted = self.label_maps[self.images.index(self.unlabelled[0])]
            raise DataError(
                f"{self.found.source}: {len(self.unlabelled)} of {len(self.images)} images have no label map, first "
                f"{self.unlabelled[0]} ({wanted} does not exist); add label maps or remove the images, and see "
                "data_prefix and seg_map_suffix"
            )


def find_pairs(
    images: str | Path,
    labels: str | Path,
    img_suffix: str = ".jpg",
    seg_map_suffix: str = ".png",
    listed: Path | None = None,
) -> ImagePairs:
    """Find the images of a folder at any depth, and the label maps of the same relative names in another one.

    Args:
        images, labels: folders.
        img_suffix, seg_map_suffix: ends of the names.
        listed: a text file with one name per line, without its end; only these are used.

    Raises:
        DataError: if a folder or the list cannot be read, a listed image does not exist, or there are no images.
    """
    found, of_labels = Found(Path(images)), Found(Path(labels))
    if not found.source.is_dir():
        raise DataError(f"{images} is not a folder; check data_root and data_prefix")
    files = [file.relative_to(images) for file in image_files(found.source, found, suffix=img_suffix)]
    if of_labels.source.is_dir():
        of_labels.files += image_files(of_labels.source, of_labels, suffix=seg_map_suffix)
    if os.path.realpath(images) == os.path.realpath(labels):  # label maps may end like images: x.png, x_labels.png
        files = [file for file in files if not file.name.endswith(seg_map_suffix)]
        _leave_out_neither(found, seg_map_suffix)
        _leave_out_neither(of_labels, img_suffix)

    names = [str(file).removesuffix(img_suffix) for file in files]
    if listed is not None:
        there, names = set(names), read_list(listed)
        absent = [name for name in names if name not in there and not Path(images, name + img_suffix).is_file()]
        if absent:
            raise DataError(
                f"{listed} lists {len(absent)} images that do not exist, first "
                f"{os.path.join(images, absent[0] + img_suffix)}; lines are names without {img_suffix} (img_suffix)"
            )
        for name in sorted(there - set(names)):
            found.leave_out(f"images that {listed} does not list", Path(images, name + img_suffix))
    if not names:
        raise DataError(f"{images} has no images: names must end in {img_suffix} (img_suffix){found.remainder()}")

    pairs = [(os.path.join(images, n + img_suffix), os.path.join(labels, n + seg_map_suffix)) for n in names]
    if listed is None:
        pairs.sort()
    found.files = [Path(image) for image, _ in pairs]
    there, wanted = {str(file) for file in of_labels.files}, {str(Path(label)) for _, label in pairs}
    unlabelled = [image for image, label in pairs if str(Path(label)) not in there and not Path(label).is_file()]
    unused = [file for file in of_labels.files if str(file) not in wanted and listed is None]
    images_of, labels_of = map(list, zip(*pairs, strict=True))
    return ImagePairs(images_of, labels_of, found, of_labels.left_out, unlabelled, unused)


def _leave_out_neither(found: Found, suffix: str) -> None:
    """Where images and label maps lie in one folder, none of them counts as left out."""
    for reason, files in list(found.left_out.items()):
        found.left_out[reason] = [file for file in files if not file.name.endswith(suffix)]
        if not found.left_out[reason]:
            del found.left_out[reason]
