"""Clusters, the prediction unit of ARM (section 3.2): which patches belong together, and who may see whom.

Legend: M clusters of the image, P patches of a cluster (side * side).
"""

import torch
from torch import Tensor


def cluster_patches(height: int, width: int, side: int) -> Tensor:
    """Patch numbers (raster) of each cluster; clusters row-first, patches raster inside a cluster.

    Args:
        height, width: grid in patches.
        side: patches along one side of a cluster.

    Returns:
        (M, P) int64.

    Raises:
        ValueError: if the grid does not divide into clusters, or into fewer than two.
    """
    if height % side or width % side:
        raise ValueError(
            f"a grid of {height} x {width} patches does not divide into clusters of {side} x {side}: "
            f"choose an img_size whose sides are multiples of {side} patches"
        )
    if height * width < 2 * side * side:
        raise ValueError(f"a grid of {height} x {width} patches is one cluster of {side} x {side}: nothing to predict")
    grid = torch.arange(height * width).view(height // side, side, width // side, side)
    return grid.permute(0, 2, 1, 3).reshape(-1, side * side)


def cluster_causal_mask(clusters: int, patches: int) -> Tensor:
    """(M * P, M * P) booleans, True where a query may look: all patches of its own and of earlier clusters."""
    cluster = torch.arange(clusters).repeat_interleave(patches)
    return cluster[:, None] >= cluster[None, :]
