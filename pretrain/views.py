"""Two random views of each image, the input of MoCo v3 (its appendix A).

Legend: B images, H, W height and width of a view.
"""

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DATASETS, MODELS
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from .data import ImageCrops


def view_transform(size: tuple[int, int], scale: tuple[float, float], blur: float, solarize: float) -> v2.Compose:
    """Crop, colours, grey, blur, solarization and flip of one view; maps a PIL image to a PIL image.

    Args:
        size: (height, width) in pixels.
        scale: range of the crop's area as a fraction of the image.
        blur, solarize: probabilities.
    """
    kernel = max(3, round(min(size) / 20) * 2 + 1)  # about a tenth of the image: all that a Gaussian of 2 pixels needs
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=blur),
            v2.RandomSolarize(threshold=128, p=solarize),
            v2.RandomHorizontalFlip(),
        ]
    )


@DATASETS.register_module()
class ImageViews(ImageCrops):
    """A data set of two views of each image.

    The first view is always blurred; of the second, one in ten is blurred and one in five solarized. An item is
    dict(inputs=(2, 3, H, W) uint8 RGB tensor, data_samples=path of the file).

    Args:
        size: pixels, one number or (height, width).
        scale: range of a crop's area as a fraction of the image.

    The other arguments are as in `ImageCrops`; without `augment` both views are its centre crop.
    """

    def __init__(
        self,
        path: str,
        prefix: str | None = None,
        size: int | tuple[int, int] = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        augment: bool = True,
        on_error: str = "raise",
        max_skipped: int = 100,
    ) -> None:
        super().__init__(path, prefix, size, scale, augment, on_error, max_skipped)
        self.views = [view_transform(self.size, scale, 1.0, 0.0), view_transform(self.size, scale, 0.1, 0.2)]

    def draw(self, image: Image.Image) -> Tensor:
        return torch.stack([pil_to_tensor(view(image)) for view in self.views])

    def centre(self, image: Image.Image) -> Tensor:
        return super().centre(image).expand(2, -1, -1, -1)


@MODELS.register_module()
class ViewsPreprocessor(BaseDataPreprocessor):
    """Stacks and normalizes views: B tensors (2, 3, H, W) -> (B, 2, 3, H, W).

    Args:
        mean, std: of the three channels, in 0 to 255.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("view_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("view_std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        return data | dict(inputs=(torch.stack(list(data["inputs"])).float() - self.view_mean) / self.view_std)
