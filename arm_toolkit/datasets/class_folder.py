"""mmengine data set of images in one folder per class, as ImageNet."""

from pathlib import Path

from mmengine.registry import DATASETS
from timm.data import create_transform
from torch.utils.data import Dataset

from arm_images.read import ImageFiles

from .class_images import find_class_images
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
        ann_file: a text file with paths relative to the split's folder, one per line; only these images are used. A
            relative path is relative to `data_root`. "" uses all images.

    Raises:
        DataError: see `find_class_images`.
    """

    def __init__(
        self,
        data_root: str,
        split: str,
        transform: dict,
        classes_from: str = "train",
        on_error: str = "raise",
        max_skipped: int = 100,
        ann_file: str = "",
    ) -> None:
        listed = Path(data_root, ann_file) if ann_file else None
        images = find_class_images(Path(data_root), split, classes_from, listed)
        images.found.log()
        self.classes, self.labels = images.classes, images.labels
        self.metainfo = dict(classes=self.classes)
        self.transform = create_transform(**transform)
        self.files = ImageFiles(images.found.files, on_error, max_skipped)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        image, position = self.files.load_rgb(index)
        with seeded(getattr(index, "seed", None)):  # timm's transforms draw from random, numpy and torch
            return dict(inputs=self.transform(image), data_samples=self.labels[position])
