"""Random crops of unlabeled images, the input of pretraining (ARM section 4.1)."""

import time

import torch
from mmengine.registry import DATASETS
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import pil_to_tensor

from arm_images.find import find_images
from arm_images.read import ImageFiles


@DATASETS.register_module()
class ImageCrops(Dataset):
    """A data set of random resized crops and horizontal flips, as in the reference code (scale 0.2 to 1, bicubic).

    An item is dict(inputs=(3, H, W) uint8 RGB tensor, data_samples=path of the file). If the index has an attribute
    `seed` (see `arm_toolkit.datasets.samplers`), this seed alone determines the random crop and flip.

    Args:
        path, prefix: see `arm_images.find.find_images`.
        size: pixels, one number or (height, width).
        scale: range of the crop's area as a fraction of the image.
        augment: False for the largest centre crop with the aspect ratio of `size`, resized to `size`.
        on_error, max_skipped: see `arm_images.read.ImageFiles`.

    Attributes:
        files: the images found.
        spent: (2,) float64, seconds spent on items and number of items, summed over all data loader workers.

    Raises:
        DataError: if there are no images; for an item, see `ImageFiles.load_rgb`.
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
        self.spent = torch.zeros(2, dtype=torch.float64).share_memory_()

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
                inputs = self.draw(image)
        else:
            inputs = self.centre(image)
        item = dict(inputs=inputs, data_samples=str(self.files[position]))
        self.spent += torch.tensor([time.perf_counter() - start, 1.0], dtype=torch.float64)
        return item

    def draw(self, image: Image.Image) -> Tensor:
        """The random crop of an image, the `inputs` of its item."""
        return pil_to_tensor(self.random_crop(image))

    def centre(self, image: Image.Image) -> Tensor:
        """The largest centre crop of an image, resized."""
        return pil_to_tensor(ImageOps.fit(image, self.size[::-1], Image.Resampling.BICUBIC))
