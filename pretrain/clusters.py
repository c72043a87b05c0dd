"""Clusters, the prediction unit of ARM (section 3.2), and the orders in which they are predicted.

Legend: M clusters of the image, P patches of a cluster (side * side).
"""

import torch
from torch import Tensor

ORDERS = ("row_forward", "row_backward", "column_forward", "column_backward", "reverse", "random")


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


def cluster_order(rows: int, columns: int, order: str) -> Tensor:
    """Numbers (row-first) of the clusters in the order of a sequence.

    Args:
        rows, columns: clusters of the image.
        order: one of `ORDERS`. "row_backward" and "column_backward" reverse within each row or column, as ARM's do;
            "reverse" is the whole of "row_forward" backwards; "random" draws another one at every call.

    Returns:
        (M,) int64 permutation.

    Raises:
        ValueError: for another order.
    """
    grid = torch.arange(rows * columns).view(rows, columns)
    if order == "row_forward":
        return grid.flatten()
    if order == "row_backward":
        return grid.flip(1).flatten()
    if order == "column_forward":
        return grid.t().flatten()
    if order == "column_backward":
        return grid.t().flip(1).flatten()
    if order == "reverse":
        return grid.flatten().flip(0)
    if order == "random":
        return torch.randperm(rows * columns)
    raise ValueError(f"order={order!r} is unknown; give one of {', '.join(ORDERS)}")
