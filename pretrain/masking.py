"""Random masking of patches (MAE section 3): which patches of each image the encoder reads.

Legend: B images, M patches of an image, K kept patches.
"""

import torch
from torch import Tensor


def kept_patches(patches: int, ratio: float) -> int:
    """K, the number of patches that a mask leaves: `patches * (1 - ratio)`, rounded down.

    Raises:
        ValueError: if the ratio is not in [0, 1), or leaves no patch.
    """
    if not 0 <= ratio < 1 or int(patches * (1 - ratio)) < 1:
        raise ValueError(
            f"mask_ratio={ratio} leaves the encoder none of {patches} patches to read; give a ratio from 0 to below 1, "
            "such as 0.75"
        )
    return int(patches * (1 - ratio))


def mask_patches(noise: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Keep the patches with the smallest noise, in raster order: a scan reads a sequence, which must not be shuffled.

    Args:
        noise: (B, M), one number per patch.
        ratio: fraction of the patches that are masked.

    Returns:
        indices of the kept patches (B, K) int64, ascending, and the mask (B, M) in the noise's dtype, 1 for masked.

    Raises:
        ValueError: if the ratio is not in [0, 1), or leaves no patch.
    """
    kept = noise.argsort(dim=1, stable=True)[:, : kept_patches(noise.shape[1], ratio)].sort(1).values
    return kept, torch.ones_like(noise).scatter_(1, kept, 0)
