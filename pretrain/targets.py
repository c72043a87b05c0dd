"""What is predicted: the pixels of each patch, normalised per patch or not (ARM section 4.1; MAE's)."""

from torch import Tensor

TARGETS = ("normalised_pixels", "pixels")
EPS = 1e-6


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, 3, H, W) -> (B, Gh * Gw, p * p * 3), raster patches, each flattened as (row, column, channel)."""
    batch, channels, height, width = images.shape
    p = patch_size
    x = images.view(batch, channels, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * p * channels)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`: (B, Gh * Gw, p * p * 3) -> (B, 3, Gh * p, Gw * p)."""
    p, (height, width) = patch_size, grid
    x = patches.view(len(patches), height, width, p, p, 3)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, height * p, width * p)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch's values, unbiased variance as in the reference code; both (..., 1)."""
    mean = patches.mean(-1, keepdim=True)
    return mean, (patches.var(-1, keepdim=True) + EPS).sqrt()


def normalised_pixels(patches: Tensor) -> Tensor:
    """Each patch's values minus their mean, over their deviation."""
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation
