"""mmengine data set of images in one folder per class, as ImageNet."""

from pathlib import Path

from mmengine.registry import DATASETS
from timm.data import create_transform
from torch.utils.data import Dataset

from arm_images.errors import DataError
from arm_images.find import EXPECTED, Found, image_files
from arm_images.read import ImageFiles

from .samplers import seeded


@DATASETS.register_module()
class ClassFolder(Dataset):
    """A classification data set in ImageNet's layout: one folder of images per class.

    Class folders may have subfolders.

    An item is dict(inputs=normalized float tensor (3, H, W), data_samples=label). If the index carries a seed (see
    `SampleIndex`), augmentation depends on it alone.

    Args:
        data_root: folder that contains the folders `split` and `classes_from`.
        split: name of a folder with one folder per class.
        transform: arguments of `timm.data.create_transform`.
        classes_from: the split that defines the classes: label i is its i-th folder name in sorted order.
        on_error, max_skipped: see `arm_images.read.ImageFiles`.

    Raises:
        DataError: for a missing folder, a class without images, or a class folder that `classes_from` lacks.
    """

    def __init__(
        self,
        data_root: str,
        split: str,
        transform: dict,
        classes_from: str = "train",
        on_error: str = "raise",
        max_skipped: int = 100,
    ) -> None:
        folder, numbered = Path(data_root) / split, Path(data_root) / classes_from
        self.classes = _class_names(numbered)
        unknown = sorted(set(_class_names(folder)) - set(self.classes))
        if unknown:
            raise DataError(
                f"{folder / unknown[0]} is not a class: {numbered} has no such folder; add it there or remove this one"
            )
        found, self.labels, split_files = [], [], Found(folder)
        for label, name in enumerate(self.classes):
            if not (folder / name).is_dir():
                split_files.leave_out(f"classes of {numbered} without a folder here", folder / name)
                continue
            files = image_files(folder / name, split_files)
            if not files:
                raise DataError(
                    f"{folder / name} is a class without an image (expected {EXPECTED}); add images or remove the "
                    f"folder{split_files.remainder()}"
                )
            found += files
            self.labels += [label] * len(files)
        split_files.files = found
        if not found:
            raise DataError(f"the class folders of {folder} contain no image; expected {EXPECTED}")
        split_files.log()
        self.metainfo = dict(classes=self.classes)
        self.transform = create_transform(**transform)
        self.files = ImageFiles(found, on_error, max_skipped)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        image, position = self.files.load_rgb(index)
        with seeded(getattr(index, "seed", None)):  # timm's transforms draw from random, numpy and torch
            return dict(inputs=self.transform(image), data_samples=self.labels[position])


def _class_names(root: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(f"{root} does not exist; set --cfg-options data_root=PATH to a folder with train/ and val/")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(f"{root} has no class folders; it needs one folder of images per class")
    return names
