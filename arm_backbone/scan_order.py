"""Token orders of the scans, as explicit permutations (ARM section 3.3; STAR section 3.4 for the tail token).

Legend: B images, H, W grid height and width in tokens, which may differ; L sequence length; K scan directions.
`orders[k, t]` is the token that direction k visits at step t.
"""

import torch
from torch import Tensor

from .ops.orders import ScanOrders

CLS_POSITIONS = (None, "middle", "tail")


def scan_orders(
    height: int,
    width: int,
    scans: int = 4,
    cls_token: str | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Orders in which the mixer scans a raster sequence of H * W patches, with or without a class token.

    Direction 0 is row-forward, 1 row-backward, 2 column-forward, 3 column-backward; a backward order is the exact
    reversal of the forward one. A class token is at index p = H*W // 2 ("middle", reference code) or p = H*W ("tail",
    STAR) of the sequence, and both forward orders visit it at step p. The backward orders therefore visit a tail token
    first.

    Args:
        scans: 1 (row-forward), 2 (both row directions, as in Vim) or 4.
        cls_token: None, "middle" or "tail".

    Returns:
        (K, L) int64 permutations; L = H*W, or H*W + 1 with a class token.

    Raises:
        ValueError: for another number of scans, an unknown class token position, or an empty grid.
    """
    if scans not in (1, 2, 4):
        raise ValueError(f"scans={scans!r}: ARM scans once (pretraining) or four times (finetuning), Vim once or twice")
    if height < 1 or width < 1:
        raise ValueError(f"a grid of {height} x {width} tokens is empty; the image is smaller than one patch")
    patches = torch.arange(height * width, device=device).view(height, width)
    forward = [patches.flatten()]
    if scans == 4:
        forward.append(patches.t().flatten())
    position = cls_index(height * width, cls_token)
    if position is not None:
        forward = [_insert_cls(order, position) for order in forward]
    if scans == 1:
        return forward[0].unsqueeze(0)
    return torch.stack([order for row in forward for order in (row, row.flip(0))])


def grid_orders(
    height: int,
    width: int,
    scans: int = 4,
    cls_token: str | None = None,
    device: torch.device | str | None = None,
) -> ScanOrders:
    """`scan_orders` as `ScanOrders`, which operators use without validation."""
    return ScanOrders.trusted(scan_orders(height, width, scans, cls_token, device))


def cls_index(num_patches: int, cls_token: str | None) -> int | None:
    """Index of the class token in the sequence of `num_patches` patches and itself; None without a class token.

    Raises:
        ValueError: for an unknown position.
    """
    if cls_token not in CLS_POSITIONS:
        raise ValueError(f"cls_token={cls_token!r} is unknown; give None, 'middle' or 'tail'")
    if cls_token is None:
        return None
    return num_patches // 2 if cls_token == "middle" else num_patches


def _insert_cls(order: Tensor, position: int) -> Tensor:
    """Add 1 to the patch indices from `position` on, and visit the class token at step `position`."""
    order = order + (order >= position)
    return torch.cat([order[:position], order.new_full((1,), position), order[position:]])


def inverse_orders(orders: Tensor) -> Tensor:
    """(K, L) inverse permutations: `inverse[k, orders[k, t]] == t`."""
    steps = torch.arange(orders.shape[1], device=orders.device).expand_as(orders)
    return torch.empty_like(orders).scatter_(1, orders, steps)


def restrict_orders(orders: ScanOrders, kept: Tensor) -> ScanOrders:
    """Orders of the tokens that each image keeps: the full order without the others.

    Args:
        orders: (K, L); a single one must be the raster order.
        kept: (B, Lk) int64, places of each image's kept tokens in its sequence, ascending.

    Returns:
        (B, K, Lk), indices into the kept tokens; (1, Lk) for one scan, which reads them as they come.
    """
    if len(orders) == 1:
        return ScanOrders.trusted(torch.arange(kept.shape[1], device=kept.device).unsqueeze(0))
    steps = inverse_orders(orders.tensor)[:, kept]  # (K, B, Lk), when the full order visits each kept token
    return ScanOrders.trusted(steps.argsort(2).transpose(0, 1).contiguous())
