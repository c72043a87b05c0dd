"""Vim (Vision Mamba), the encoder that ARM and STAR compare with: blocks of one Mamba mixer, two scan directions.

It is ARM's trunk with other blocks, so every part that takes ARM takes Vim: patches, class token in the middle,
position embedding, images of any size, pretraining with one scan.

Legend: B batch, K scan directions, L tokens, C channels.
"""

from collections.abc import Iterator

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .arm import ARM, TRUNKS, ARMTrunk
from .block import NORM_EPS
from .classifier import CLASSIFIERS, ARMClassifier
from .drop_path import linear_rates
from .mixer import MambaMixer
from .ops.norm import layer_norm
from .ops.orders import ScanOrders

# tiny, small and base are the published sizes; large and huge are those of ARM's comparison (its Table 2)
ARCHS = {
    "tiny": dict(embed_dims=192, num_layers=24),
    "small": dict(embed_dims=384, num_layers=24),
    "base": dict(embed_dims=768, num_layers=24),
    "large": dict(embed_dims=1024, num_layers=48),
    "huge": dict(embed_dims=1536, num_layers=48),
}
EXPAND = 2  # inner channels of the mixer, as a multiple of C


class VimBlock(nn.Module):
    """`x + drop_path(mixer(norm(x)))` with an RMSNorm, without an MLP.

    Args:
        dim: channels.
        scans: scan directions K.
        drop_path: stochastic depth rate, drawn per sample.
        num_blocks: blocks in the network; scales the initial weights of the mixer's out_proj.
        reference_init, device, dtype: as in `MambaMixer`.
    """

    def __init__(
        self,
        dim: int,
        scans: int,
        drop_path: float,
        num_blocks: int,
        reference_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        self.norm = nn.RMSNorm(dim, eps=NORM_EPS, **factory)
        self.mixer = MambaMixer(
            dim, scans, expand=EXPAND, residual_layers=num_blocks, reference_init=reference_init, **factory
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, orders: ScanOrders | Tensor) -> Tensor:
        """x (B, L, C), orders (K, L) -> (B, L, C) in the dtype of x, which may be wider than that of the weights."""
        normed = layer_norm(x.to(self.norm.weight.dtype), self.norm)
        return x + self.drop_path(self.mixer(normed, orders))


class VimTrunk(ARMTrunk):
    """Patch embedding, position embedding and blocks of Vim.

    Args:
        arch: name in `ARCHS`, or a dict with embed_dims and num_layers.
        scans: 2 (forward and backward), or 1: a causal encoder, for autoregressive pretraining.
        reference_init: zero the backward direction's delta bias, as the published training does, instead of giving both
            directions Mamba's initial step sizes.

    The other arguments are as in `ARMTrunk`.

    Raises:
        ValueError: for an argument out of range; the message names it.
    """

    encoder_name = "Vim"
    archs = ARCHS
    most_scans = 2
    norm_type = nn.RMSNorm
    block_type = VimBlock
    drop_path_rates = staticmethod(linear_rates)

    def __init__(self, *args, scans: int = 2, reference_init: bool = True, **kwargs) -> None:
        super().__init__(*args, scans=scans, reference_init=reference_init, **kwargs)

    def block_outputs(self, x: Tensor, orders: ScanOrders | Tensor) -> Iterator[Tensor]:
        """As in `ARMTrunk`; between the blocks tokens are at least float32, also in a model of bfloat16 weights."""
        dtype = x.dtype
        for output in super().block_outputs(x.float() if dtype.itemsize < 4 else x, orders):
            yield output.to(dtype)


TRUNKS[VimTrunk.encoder_name] = VimTrunk


class Vim(ARM, VimTrunk):
    """Backbone for dense prediction: maps images of any size to feature maps at the patch stride.

    Args:
        scans: 2, or 1 for a causal encoder.
        cls_token: "middle" as in Vim, None as after autoregressive pretraining, or "tail"; the maps do not contain it.
        out_indices: blocks (from 0) whose outputs are returned, by default 7, 11, 15, 23 of 24.

    The other arguments are as in `arm_backbone.arm.ARM`.
    """

    def __init__(self, *args, scans: int = 2, cls_token: str | None = "middle", **kwargs) -> None:
        super().__init__(*args, scans=scans, cls_token=cls_token, **kwargs)


class VimClassifier(ARMClassifier, VimTrunk):
    """Vim's image classifier: the class token after an RMSNorm, and a linear head.

    Args:
        scans: 2, or 1 for a causal encoder.
        global_pool: "token" as in Vim; the others are as in `ARMClassifier`.
        reference_init: as in `VimTrunk`.

    The other arguments are as in `ARMClassifier`.
    """

    def __init__(
        self, *args, scans: int = 2, global_pool: str = "token", reference_init: bool = True, **kwargs
    ) -> None:
        super().__init__(*args, scans=scans, global_pool=global_pool, reference_init=reference_init, **kwargs)


CLASSIFIERS[VimTrunk.encoder_name] = VimClassifier
