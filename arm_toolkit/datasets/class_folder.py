"""Image classification for mmengine's runner: class folders, mixup, accuracy.

Legend: B batch, H, W pixels.
"""

import random
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import DATASETS
from timm.data import create_transform
from torch.utils.data import Dataset

from arm_images.errors import DataError
from arm_images.find import EXTENSIONS
from arm_images.read import ImageFiles


@DATASETS.register_module()
class ClassFolder(Dataset):
    """ImageNet's layout, or any tree with one folder of images a class.

    Args:
        data_root: has the folders `split` and `classes_from` in it.
        split: folder with one folder a class.
        transform: arguments of `timm.data.create_transform`.
        classes_from: the split whose folder names, sorted, number the classes.
        on_error, max_skipped: see `arm_pretrain.data.ImageFiles`.

    An item is dict(inputs=(3, H, W) float tensor, normalised, data_samples=label). If the index carries a `seed` (see
    `arm_toolkit.datasets.samplers`), the augmentation is a function of it.

    Raises:
        DataError: for a missing folder, one without images, or one that `classes_from` does not have.
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
        self.classes = _folders(numbered)
        unknown = sorted(set(_folders(folder)) - set(self.classes))
        if unknown:
            raise DataError(
                f"{folder / unknown[0]} is no class: {numbered} has no such folder; add it or remove this one"
            )
        found, self.labels = [], []
        for label, name in enumerate(self.classes):
            files = sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in EXTENSIONS)
            found += files
            self.labels += [label] * len(files)
        if not found:
            raise DataError(f"no image ({', '.join(sorted(EXTENSIONS))}) in the class folders of {folder}")
        self.metainfo = dict(classes=self.classes)
        self.transform = create_transform(**transform)
        self.files = ImageFiles(found, on_error, max_skipped)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        image, position = self.files.load_rgb(index, upright=False)
        seed = getattr(index, "seed", None)
        if seed is not None:  # timm draws from all three
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
        return dict(inputs=self.transform(image), data_samples=self.labels[position])


def _folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(f"{root} does not exist; set --cfg-options data_root=PATH to a folder with train/ and val/")
    names = sorted(p.name for p in root.iterdir() if p.is_dir())
    if not names:
        raise DataError(f"{root} has no folders; expected one folder of images a class")
    return names
