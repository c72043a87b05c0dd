"""Clusters, the prediction unit of ARM (section 3.2), and the orders in which they are predicted.

Legend: M clusters of an image, P patches of a cluster (side * side).
"""

import torch
from torch import Tensor

ORDERS = ("row_forward", "row_backward", "column_forward", "column_backward", "reverse", "random")


def cluster_patches(height: int, width: int, side: int) -> Tensor:
    """The patches of each cluster: clusters in row-major order, patches in raster order inside a cluster.

    Args:
        height, width: grid size in patches.
        side: side of a cluster in patches.

    Returns:
        (M, P) int64, raster indices of patches.

    Raises:
        ValueError: if the grid does not divide into clusters, or is a single cluster.
    """
    if height % side or width % side:
        raise ValueError(
            f"a grid of {height} x {width} patches does not divide into clusters of {side} x {side}: "
            f"choose an img_size whose sides are multiples of {side} patches"
        )
    if height * width < 2 * side * side:
        raise ValueError(
            f"a grid of {height} x {width} patches is one cluster of {side} x {side}, which leaves nothing to predict; "
            "choose a smaller cluster_side or a larger img_size"
        )
    grid = torch.arange(height * width).view(height // side, side, width // side, side)
    return grid.permute(0, 2, 1, 3).reshape(-1, side * side)


def cluster_order(rows: int, columns: int, order: str) -> Tensor:
    """The order in which clusters are read and predicted.

    Args:
        rows, columns: grid size in clusters.
        order: one of `ORDERS`. "row_backward" and "column_backward" reverse each row or column, as in ARM's ablation;
            "reverse" reverses "row_forward" as a whole; "random" draws a new permutation at each call.

    Returns:
        (M,) int64 permutation of the row-major cluster indices.

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
