"""Images without labels: any folder tree, a list file, tar shards or a Hugging Face data set, as random crops."""

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
    """Random resized crops and flips (reference code: scale 0.2 to 1, bicubic) as uint8 RGB.

    Args:
        path, prefix: see `find_images`.
        size: pixels, one number or (height, width).
        scale: range of the crop's area relative to the image.
        augment: False for the largest centre crop of that shape instead, resized.
        on_error, max_skipped: see `ImageFiles`.

    `spent` sums the seconds in which items were made, and their number, over all workers.

    An item is dict(inputs=(3, H, W) uint8 tensor, data_samples=path of the file). If the index carries a `seed` (see
    `arm_toolkit.datasets.samplers`), the crop is a function of it.
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
