"""Pixel targets: the values of each patch, normalized per patch (ARM section 4.1, MAE's `norm_pix_loss`) or not.

Legend: B images, Gh, Gw grid height and width in patches, p side of a patch in pixels, H = Gh * p, W = Gw * p.
"""

from torch import Tensor

TARGETS = ("normalized_pixels", "pixels")
RENAMED = {"normalised_pixels": "normalized_pixels"}  # older configurations, and those inside older checkpoints
EPS = 1e-6


def target_name(target: str) -> str:
    """One of `TARGETS`; the former spelling "normalised_pixels" is accepted.

    Raises:
        ValueError: for another target.
    """
    target = RENAMED.get(target, target)
    if target not in TARGETS:
        raise ValueError(f"target={target!r} is unknown; give one of {', '.join(TARGETS)}, or a tokenizer")
    return target


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, 3, H, W) -> (B, Gh * Gw, p * p * 3): patches in raster order, each flattened as (row, column, channel)."""
    batch, channels, height, width = images.shape
    p = patch_size
    x = images.view(batch, channels, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * p * channels)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`: (B, Gh * Gw, p * p * 3) and grid (Gh, Gw) -> (B, 3, H, W)."""
    p, (height, width) = patch_size, grid
    x = patches.view(len(patches), height, width, p, p, 3)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, height * p, width * p)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (as in the reference code, unbiased) standard deviation of each patch (..., C), both (..., 1)."""
    mean = patches.mean(-1, keepdim=True)
    return mean, (patches.var(-1, keepdim=True) + EPS).sqrt()


def normalized_pixels(patches: Tensor) -> Tensor:
    """Each patch (..., C) minus its mean, divided by its standard deviation."""
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation
