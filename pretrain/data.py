"""Images without labels: any folder tree, a list file, tar shards or a Hugging Face data set, as random crops."""

import io
import logging
import tarfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import pil_to_tensor

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class TarMember:
    """A file in an uncompressed tar archive, read by its place: any order, no unpacking."""

    archive: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def open(self) -> io.BytesIO:
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))


@dataclass(frozen=True)
class DatasetRow:
    """A row of a Hugging Face data set with one column, undecoded images."""

    folder: Path
    dataset: Any
    index: int

    def __str__(self) -> str:
        return f"{self.folder}, row {self.index}"

    def open(self) -> io.BytesIO:
        (image,) = self.dataset[self.index].values()
        if image is None:
            raise ValueError("no image")
        return io.BytesIO(image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes())


ImageFile = Path | TarMember | DatasetRow


def dataset_rows(folder: Path) -> list[DatasetRow]:
    """The images of a Hugging Face data set that `save_to_disk` wrote; they stay memory-mapped and encoded.

    Raises:
        ImportError: without the package `datasets`.
        ValueError: if it is a dictionary of splits, or does not have one column of images.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError(f"{folder} is a Hugging Face data set: pip install datasets") from None
    dataset = datasets.load_from_disk(str(folder))
    if isinstance(dataset, datasets.DatasetDict):
        raise ValueError(
            f"{folder} has the splits {', '.join(dataset)}; give one of them: {folder / next(iter(dataset))}"
        )
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 1:
        raise ValueError(
            f"{folder} has {len(columns)} columns of images among {', '.join(dataset.features)}; save it with one: "
            "dataset.select_columns(NAME).save_to_disk(FOLDER)"
        )
    dataset = dataset.select_columns(columns).cast_column(columns[0], datasets.Image(decode=False))
    return [DatasetRow(folder, dataset, index) for index in range(len(dataset))]


def tar_members(archive: Path) -> list[TarMember]:
    """The images of an archive (a shard as webdataset writes them, or any other).

    Raises:
        ValueError: if it is compressed, or no tar archive.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            return [
                TarMember(archive, member.offset_data, member.size, member.name)
                for member in tar
                if member.isfile() and Path(member.name).suffix.lower() in EXTENSIONS
            ]
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is no uncompressed tar archive ({error}); make it anew with tar -cf") from None


def find_images(path: str, prefix: str | None = None) -> list[ImageFile]:
    """Image files of a folder (at any depth: flat, or ImageNet's class folders), of a list file, in tar archives, or in
    a Hugging Face data set.

    Args:
        path: a folder with images or .tar archives in it, a folder that a data set was saved to, a .tar archive, or a
            text file with one path a line.
        prefix: folder that the lines of a list start from; the list's own when None.

    Raises:
        FileNotFoundError: if the path, or a file of a list, does not exist.
        ValueError: if there is no image, or a broken archive.
    """
    root = Path(path)
    if (root / "dataset_info.json").is_file() or (root / "dataset_dict.json").is_file():
        files = dataset_rows(root)
    elif root.is_dir():
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS)
        files += [member for archive in sorted(root.rglob("*.tar")) for member in tar_members(archive)]
    elif root.suffix == ".tar" and root.is_file():
        files = tar_members(root)
    elif root.is_file():
        start = Path(prefix) if prefix is not None else root.parent
        files = [start / line.strip() for line in root.read_text().splitlines() if line.strip()]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{path} lists {len(missing)} files that do not exist, first {missing[0]}; set prefix to the folder "
                "that the lines start from"
            )
    else:
        raise FileNotFoundError(
            f"data {path} does not exist; give a folder of images or .tar archives, or a text file with one path a line"
        )
    if not files:
        raise ValueError(f"no image ({', '.join(sorted(EXTENSIONS))}) under {path}")
    return files


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode; 16-bit greyscale is scaled, where PIL would cut it off at 255."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float32) * (255 / 65535)
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


class ImageFiles(list):
    """Image files, and what happens to one that cannot be read.

    Args:
        files: from `find_images`.
        on_error: "raise", or "skip" to warn and take the next one that can be read.
        max_skipped: different files that may be skipped, on each process, before the run stops after all.

    Raises:
        ValueError: for another `on_error`.
    """

    def __init__(self, files: Iterable[ImageFile], on_error: str = "raise", max_skipped: int = 100) -> None:
        super().__init__(files)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: give 'raise' or 'skip'")
        self.on_error, self.max_skipped = on_error, max_skipped
        self.skipped = torch.zeros(len(self), dtype=torch.bool).share_memory_()  # workers write into the same

    def load_rgb(self, index: int, upright: bool = True) -> tuple[Image.Image, int]:
        """Open a file as RGB.

        Args:
            upright: turn the image as its EXIF data say (ImageNet's accuracies are measured without).

        Returns:
            the image, and the index of its file.

        Raises:
            OSError: naming the file that cannot be read; with "skip" if more than `max_skipped` cannot.
        """
        for offset in range(len(self)):
            position = (index + offset) % len(self)
            file = self[position]
            try:
                with Image.open(file if isinstance(file, Path) else file.open()) as image:
                    return to_rgb(ImageOps.exif_transpose(image) if upright else image), position
            except (OSError, SyntaxError, ValueError) as error:
                if self.on_error == "raise":
                    raise OSError(
                        f"cannot read {file} ({error}); remove it, or set on_error='skip' in the dataset to leave it "
                        "out"
                    ) from None
                if not self.skipped[position]:
                    print_log(f"left out {file}: {error}", logger="current", level=logging.WARNING)
                    self.skipped[position] = True
            skipped = int(self.skipped.sum())
            if skipped > self.max_skipped:
                raise OSError(
                    f"{skipped} of {len(self)} images cannot be read, the last {file}; repair the data, or set "
                    f"max_skipped={self.max_skipped} in the dataset higher"
                )
        raise OSError(f"none of the {len(self)} images can be read, first {self[0]}")


@DATASETS.register_module()
class ImageCrops(Dataset):
    """Random resized crops and flips (reference code: scale 0.2 to 1, bicubic) as uint8 RGB.

    Args:
        path, prefix: see `find_images`.
        size: pixels, one number or (height, width).
        scale: range of the crop's area relative to the image.
        augment: False for the largest centre crop of that shape instead, resized.
        on_error, max_skipped: see `ImageFiles`.

    `spent` sums the seconds in which items were made, and their number, over all workers.

    An item is dict(inputs=(3, H, W) uint8 tensor, data_samples=path of the file). If the index carries a `seed` (see
    `arm_toolkit.sampler`), the crop is a function of it.
    """

    def __init__(
        self,
        path: str,
        prefix: str | None = None,
        size: int | tuple[int, int] = 192,
        scale: tuple[float, float] = (0.2, 1.0),
        augment: bool = True,
        on_error: str = "raise",
        max_skipped: int = 100,
    ) -> None:
        self.files = ImageFiles(find_images(path, prefix), on_error, max_skipped)
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.augment = augment
        crop = v2.RandomResizedCrop(self.size, scale, interpolation=InterpolationMode.BICUBIC)
        self.random_crop = v2.Compose([crop, v2.RandomHorizontalFlip()])
        self.spent = torch.zeros(2, dtype=torch.float64).share_memory_()  # seconds and images, of all workers

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        start = time.perf_counter()
        image, position = self.files.load_rgb(index)
        if self.augment:
            seed = getattr(index, "seed", None)
            with torch.random.fork_rng(devices=[], enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                image = self.random_crop(image)
        else:
            image = ImageOps.fit(image, self.size[::-1], Image.Resampling.BICUBIC)
        item = dict(inputs=pil_to_tensor(image), data_samples=str(self.files[position]))
        self.spent += torch.tensor([time.perf_counter() - start, 1.0], dtype=torch.float64)
        return item
