"""Position embeddings: the fixed 2-D sin-cos table of pretraining, and resizing a table to another grid."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_pos_embed(
    height: int, width: int, dim: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Fixed 2-D sin-cos table (ARM section 4.1; layout of MAE).

    The first half of the channels encodes the column, the second half the row. Each half holds the sines of all
    frequencies, then the cosines.

    Args:
        height, width: grid in tokens.
        dim: channels.
        dtype, device: of the table.

    Returns:
        (1, H, W, dim).

    Raises:
        ValueError: if dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"a 2-D sin-cos table needs a number of channels that is a multiple of 4, not {dim}")
    # float64, because devices round large angles differently
    exact = dict(dtype=torch.float64, device=device)
    frequency = 10000 ** -(torch.arange(dim // 4, **exact) / (dim // 4))
    row = torch.arange(height, **exact)[:, None] * frequency  # (H, dim/4)
    column = torch.arange(width, **exact)[:, None] * frequency  # (W, dim/4)
    row = torch.cat([row.sin(), row.cos()], 1)[:, None].expand(height, width, -1)
    column = torch.cat([column.sin(), column.cos()], 1)[None].expand(height, width, -1)
    return torch.cat([column, row], 2)[None].to(dtype)


def resize_pos_embed(pos_embed: Tensor, height: int, width: int) -> Tensor:
    """Resize a (1, Gh, Gw, C) table to (1, height, width, C), bicubically; return it unchanged if the grid is equal.

    An exported or traced program always interpolates, so that it takes grids of any size; on an equal grid that changes
    nothing.
    """
    program = torch.compiler.is_exporting() or torch.jit.is_tracing()
    if not program and pos_embed.shape[1:3] == (height, width):
        return pos_embed
    table = pos_embed.permute(0, 3, 1, 2).float()
    table = F.interpolate(table, size=(height, width), mode="bicubic", align_corners=False)
    return table.permute(0, 2, 3, 1).to(pos_embed.dtype)
