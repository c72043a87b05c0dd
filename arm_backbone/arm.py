"""The ARM backbone (ARM section 3.3, Table 1): patches, position embedding, MambaMLP blocks, one map a level.

Legend: B batch, H, W image height and width, Gh, Gw grid height and width in tokens, L tokens, C channels.
"""

import functools
import math
import re

import torch
import torch.nn.functional as F
from timm.layers import lecun_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from .block import NORM_EPS, Block
from .ops import ScanOrders, uses_fused_inner
from .optim import is_decayed
from .pos_embed import resize_pos_embed
from .scan_order import cls_index, grid_orders

# ARM Table 1; tiny and small are ours, for small machines
ARCHS = {
    "tiny": dict(embed_dims=192, num_layers=12),
    "small": dict(embed_dims=384, num_layers=12),
    "base": dict(embed_dims=768, num_layers=12),
    "large": dict(embed_dims=1024, num_layers=24),
    "huge": dict(embed_dims=1536, num_layers=24),
}


# what a checkpointed block does not do twice
EXPENSIVE = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.arm.cross_scan.default,
]


def run_checkpointed(block: nn.Module, x: Tensor, orders: ScanOrders | Tensor, with_cp: bool | str) -> Tensor:
    """A block whose backward computes again, with True all but products and scans, with "all" everything.

    Where the mixer is one autograd function (`uses_fused_inner`), a block does what True means by itself, at less cost.
    """
    if not with_cp or not torch.is_grad_enabled():
        return block(x, orders)
    if with_cp == "all":
        return checkpoint(block, x, orders, use_reentrant=False)
    if uses_fused_inner(x):
        return block(x, orders)
    context = functools.partial(create_selective_checkpoint_contexts, EXPENSIVE)
    return checkpoint(block, x, orders, use_reentrant=False, context_fn=context)


def resolve_arch(arch: str | dict) -> tuple[int, int]:
    """(embed_dims, num_layers) of an architecture's name, or of a dict with just these two keys."""
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f"arch={arch!r} is unknown; give one of {', '.join(ARCHS)}, or a dict with embed_dims and num_layers"
            )
        arch = ARCHS[arch]
    if set(arch) != {"embed_dims", "num_layers"}:
        raise ValueError(f"arch={dict(arch)!r}: a dict needs exactly the keys embed_dims and num_layers")
    return arch["embed_dims"], arch["num_layers"]


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one or two numbers."""
    return (size, size) if isinstance(size, int) else tuple(size)


def drop_path_rates(rate: float, num_layers: int) -> list[float]:
    """Rate of each block, as the reference code gives them: 0, then the linear rise from 0 without its last value."""
    return [0.0] + [rate * i / (num_layers - 1) for i in range(num_layers - 1)]


class PatchEmbed(nn.Module):
    """(B, in_chans, H, W) -> (B, Gh, Gw, C), one token for each patch."""

    def __init__(self, patch_size: int, stride: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride)
        lecun_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)


class ARMTrunk(nn.Module):
    """Patch embedding, position embedding and blocks: what pretraining, backbone and classifier have in common.

    Args:
        arch: name of `ARCHS`, or a dict of embed_dims and num_layers.
        img_size: pixels, one number or (height, width); sets the grid of the position embedding.
        patch_size, patch_stride: pixels.
        scans: 1 (pretraining) or 4 (finetuning) directions.
        cls_token: None, or the place of a class token in the sequence: "middle" (reference code) or "tail" (STAR).
        in_chans: channels of the images.
        drop_path_rate: stochastic depth, rising with depth.
        with_cp: recompute in the backward instead of keeping activations: True recomputes the cheap parts of a block
            (norms, convolution, activations) and keeps the results of matrix products and scans (with the kernels of a
            GPU or a CPU a block does about that by itself), "all" keeps nothing of a block but its input.
        reference_init: zero the delta biases of directions 2 to 4, as the reference code does from scratch, instead of
            giving every direction Mamba's own step sizes.
    """

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        patch_stride: int = 16,
        scans: int = 4,
        cls_token: str | None = None,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        with_cp: bool | str = False,
        reference_init: bool = False,
    ) -> None:
        super().__init__()
        if with_cp not in (False, True, "all"):
            raise ValueError(f"with_cp={with_cp!r}: give False, True (cheap parts) or 'all' (whole blocks)")
        if scans not in (1, 4):
            raise ValueError(f"scans={scans!r}: ARM scans once (pretraining) or four times (finetuning); give 1 or 4")
        self.embed_dims, self.num_layers = resolve_arch(arch)
        self.img_size = to_pair(img_size)
        self.patch_size, self.patch_stride = patch_size, patch_stride
        self.scans, self.with_cp = scans, with_cp
        if min(self.img_size) < patch_size:
            raise ValueError(f"img_size={img_size!r} is smaller than one patch of {patch_size} pixels")
        self.grid_size = tuple((s - patch_size) // patch_stride + 1 for s in self.img_size)
        self.patch_embed = PatchEmbed(patch_size, patch_stride, in_chans, self.embed_dims)
        self.pos_embed = nn.Parameter(torch.empty(1, *self.grid_size, self.embed_dims).normal_(std=0.02))
        cls_index(1, cls_token)  # refuses an unknown position
        self.cls_token_position = cls_token
        if cls_token is not None:
            self.cls_token = nn.Parameter(torch.empty(1, 1, self.embed_dims).normal_(std=0.02))
            self.cls_pos_embed = nn.Parameter(torch.empty(1, 1, self.embed_dims).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            Block(self.embed_dims, scans, rate, self.num_layers)
            for rate in drop_path_rates(drop_path_rate, self.num_layers)
        )
        if reference_init:
            for block in self.blocks:
                nn.init.zeros_(block.mixer.dt_proj_bias[1:])

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, in_chans, H, W) -> tokens (B, L, C) with position and class token, and the grid (Gh, Gw).

        The grid is the reference code's, (H - patch_size) // patch_stride + 1; the position embedding is resized to it.
        """
        x = self.patch_embed(images)
        grid = tuple(x.shape[1:3])
        x = (x + resize_pos_embed(self.pos_embed, *grid)).flatten(1, 2)
        position = cls_index(x.shape[1], self.cls_token_position)
        if position is not None:
            cls_token = (self.cls_token + self.cls_pos_embed).expand(x.shape[0], -1, -1).to(x.dtype)
            x = torch.cat([x[:, :position], cls_token, x[:, position:]], dim=1)
        return x, grid

    def orders(self, grid: tuple[int, int]) -> ScanOrders:
        """Token orders (K, L) of the scans for a grid (Gh, Gw)."""
        return grid_orders(*grid, self.scans, self.cls_token_position, device=self.pos_embed.device)

    def patch_tokens(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, Gh * Gw, C), without the class token."""
        if self.cls_token_position is None:
            return x
        position = cls_index(x.shape[1] - 1, self.cls_token_position)
        return torch.cat([x[:, :position], x[:, position + 1 :]], dim=1)

    def run_block(self, index: int, x: Tensor, orders: ScanOrders | Tensor) -> Tensor:
        """Block `index` on x (B, L, C), with `with_cp` recomputed in the backward."""
        return run_checkpointed(self.blocks[index], x, orders, self.with_cp)

    def no_weight_decay(self) -> set[str]:
        """Names that the reference code exempts from weight decay: norms, biases, D, tables and tokens."""
        return {name for name, parameter in self.named_parameters() if not is_decayed(name, parameter, "reference")}

    def layer_depth(self, name: str) -> int:
        """Depth for layer-wise learning-rate decay: 0 for the embeddings, i + 1 for block i, then the rest.

        Raises:
            KeyError: if the model has no such parameter.
        """
        if name.startswith(("patch_embed.", "pos_embed", "cls_token", "cls_pos_embed")):
            return 0
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block[1]) + 1
        self.get_parameter(name)
        return self.num_layers + 1


class ARM(ARMTrunk):
    """Backbone for dense prediction: images of any size to maps of the patch stride.

    Args:
        cls_token: as in `ARMTrunk`, for weights of a finetuned classifier; it is dropped from the maps.
        out_indices: blocks (from 0) whose outputs are returned; four levels by depth when None: 3, 5, 7, 11 of 12 and
            7, 11, 15, 23 of 24.
        frozen_stages: -1 trains everything, 0 freezes the embeddings, n the first n blocks too.

    The other arguments are those of `ARMTrunk`.
    """

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        patch_stride: int = 16,
        scans: int = 4,
        cls_token: str | None = None,
        out_indices: tuple[int, ...] | None = None,
        drop_path_rate: float = 0.0,
        with_cp: bool | str = False,
        frozen_stages: int = -1,
    ) -> None:
        super().__init__(
            arch,
            img_size,
            patch_size,
            patch_stride,
            scans,
            cls_token,
            drop_path_rate=drop_path_rate,
            with_cp=with_cp,
        )
        self.out_indices = default_out_indices(self.num_layers) if out_indices is None else tuple(out_indices)
        if not self.out_indices or not all(0 <= i < self.num_layers for i in self.out_indices):
            raise ValueError(f"out_indices={out_indices!r}: give block numbers from 0 to {self.num_layers - 1}")
        if list(self.out_indices) != sorted(set(self.out_indices)):
            raise ValueError(f"out_indices={out_indices!r} must rise")
        self.out_norms = nn.ModuleList(nn.LayerNorm(self.embed_dims, eps=NORM_EPS) for _ in self.out_indices)
        if not -1 <= frozen_stages <= self.num_layers:
            raise ValueError(f"frozen_stages={frozen_stages!r}: give -1 (none) to {self.num_layers} (all blocks)")
        self.frozen_stages = frozen_stages
        self._freeze()

    def _frozen_modules(self) -> list[nn.Module]:
        return [self.patch_embed, *self.blocks[: self.frozen_stages]] if self.frozen_stages >= 0 else []

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self.frozen_stages >= 0:
            for name in ("pos_embed", "cls_token", "cls_pos_embed"):
                if hasattr(self, name):
                    getattr(self, name).requires_grad_(False)

    def train(self, mode: bool = True) -> "ARM":
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()  # no drop path in frozen blocks
        return self

    def _pad(self, images: Tensor) -> Tensor:
        """Zeros right and below, so that every pixel is in a patch and the grid is ceil(size / patch_stride)."""
        stride, patch = self.patch_stride, self.patch_size
        height, width = (max((math.ceil(s / stride) - 1) * stride + patch - s, 0) for s in images.shape[2:])
        return F.pad(images, (0, width, 0, height))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W), any H and W -> one (B, C, ceil(H/stride), ceil(W/stride)) per entry of `out_indices`.

        The image is padded with zeros right and below to whole patches.
        """
        x, grid = self.embed(self._pad(images))
        orders = self.orders(grid)
        maps = []
        for i in range(self.out_indices[-1] + 1):
            x = self.run_block(i, x, orders)
            if i in self.out_indices:
                level = self.patch_tokens(self.out_norms[len(maps)](x))
                maps.append(level.transpose(1, 2).unflatten(2, grid).contiguous())
        return tuple(maps)


def default_out_indices(num_layers: int) -> tuple[int, ...]:
    """Four levels by depth (XCiT, BEiT, MAE): 3, 5, 7, 11 of 12 blocks, 7, 11, 15, 23 of 24."""
    if num_layers < 4:
        raise ValueError(f"num_layers={num_layers}: four levels need at least 4 blocks; give out_indices")
    indices = []
    for level, part in enumerate((1 / 3, 1 / 2, 2 / 3, 1)):
        lowest, highest = len(indices) and indices[-1] + 1, num_layers - 4 + level
        indices.append(min(max(round(num_layers * part) - 1, lowest), highest))
    return tuple(indices)
