"""The ARM backbone (ARM section 3.3, Table 1): patch and position embedding, MambaMLP blocks, feature maps.

Legend: B batch, H, W image height and width, Gh, Gw grid height and width in tokens, L tokens, C channels.
"""

import re
from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from timm.layers import lecun_normal_, to_2tuple
from timm.models import is_model
from torch import Tensor, nn

from .block import NORM_EPS, Block
from .drop_path import late_rates
from .ops.library import check_images
from .ops.orders import ScanOrders
from .optim import is_decayed
from .pos_embed import resize_pos_embed
from .recompute import resolve_with_cp, run_checkpointed
from .scan_order import cls_index, grid_orders

# ARM Table 1; tiny and small are our additions, for small machines
ARCHS = {
    "tiny": dict(embed_dims=192, num_layers=12),
    "small": dict(embed_dims=384, num_layers=12),
    "base": dict(embed_dims=768, num_layers=12),
    "large": dict(embed_dims=1024, num_layers=24),
    "huge": dict(embed_dims=1536, num_layers=24),
}


def resolve_arch(arch: str | dict, archs: dict[str, dict] = ARCHS) -> tuple[int, int]:
    """(embed_dims, num_layers) for a name in `archs`, or for a dict with exactly these two keys."""
    if isinstance(arch, str):
        if arch not in archs:
            raise ValueError(
                f"arch={arch!r} is unknown; give one of {', '.join(archs)}, or a dict with embed_dims and num_layers"
            )
        arch = archs[arch]
    if not isinstance(arch, dict):
        raise ValueError(f"arch={arch!r}: give one of {', '.join(archs)}, or a dict with embed_dims and num_layers")
    if set(arch) != {"embed_dims", "num_layers"}:
        raise ValueError(f"arch={dict(arch)!r}: a dict needs exactly the keys embed_dims and num_layers")
    return arch["embed_dims"], arch["num_layers"]


def patch_grid(img_size: tuple[int, int], patch_size: int, patch_stride: int) -> tuple[int, int]:
    """Grid (Gh, Gw) of an image (height, width) without padding.

    Raises:
        ValueError: for an image smaller than a patch, or a stride with which pixels lie between the patches.
    """
    if not 1 <= patch_stride <= patch_size:
        raise ValueError(
            f"patch_stride={patch_stride!r} with patch_size={patch_size!r}: give a stride from 1 to the patch size; "
            "a larger one would leave out the pixels between the patches"
        )
    if min(img_size) < patch_size:
        raise ValueError(f"img_size={tuple(img_size)} is smaller than one patch of {patch_size} pixels")
    return tuple((size - patch_size) // patch_stride + 1 for size in img_size)


class PatchEmbed(nn.Module):
    """(B, in_chans, H, W) -> (B, Gh, Gw, C), one token per patch."""

    def __init__(self, patch_size: int, stride: int, in_chans: int, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal weights, zero biases."""
        lecun_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)


class ARMTrunk(nn.Module):
    """Patch embedding, position embedding and blocks: what pretraining, backbone and classifier share.

    The class attributes and `drop_path_rates` say what another encoder has in the place of ARM's.

    Args:
        arch: name in `ARCHS`, or a dict with embed_dims and num_layers.
        img_size: pixels, one number or (height, width); determines the grid of the position embedding.
        patch_size, patch_stride: pixels; by default patches do not overlap: the stride is the patch size.
        scans: number of scan directions, 1 (pretraining) or 4 (finetuning).
        cls_token: None, or the position of a class token in the sequence: "middle" (reference code) or "tail" (STAR).
        in_chans: image channels.
        drop_path_rate: stochastic depth rate, which rises linearly with depth.
        with_cp: activation checkpointing of each block. False: none. "selective": keep the results of matmuls and
            scans, recompute the rest; the GPU and CPU kernels always do nearly that, and then it changes nothing.
            "full" or True: keep only the block's input, recompute everything.
        reference_init: zero the delta biases of directions 2 to 4, as the reference code does when it trains from
            scratch, instead of giving every direction Mamba's initial step sizes.
        device, dtype: of the parameters.

    Raises:
        ValueError: for an argument out of range; the message names it.

    Attributes:
        encoder_name: of the encoder, in messages.
        archs: its sizes by name.
        most_scans: number of scan directions in finetuning.
        norm_type: class of the norm after the blocks.
        block_type: class of the blocks.
    """

    encoder_name = "ARM"
    archs = ARCHS
    most_scans = 4
    norm_type: type[nn.Module] = nn.LayerNorm
    block_type: type[nn.Module] = Block
    drop_path_rates = staticmethod(late_rates)

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        *,
        patch_size: int = 16,
        patch_stride: int | None = None,
        scans: int = 4,
        cls_token: str | None = None,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        with_cp: bool | str = False,
        reference_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.with_cp = resolve_with_cp(with_cp)
        if scans not in (1, self.most_scans):
            raise ValueError(
                f"scans={scans!r}: {self.encoder_name} scans in 1 direction (pretraining) or {self.most_scans} "
                f"(finetuning); give 1 or {self.most_scans}"
            )
        self.embed_dims, self.num_layers = resolve_arch(arch, self.archs)
        self.img_size = to_2tuple(img_size)
        self.patch_size, self.scans, self.in_chans = patch_size, scans, in_chans
        self.patch_stride = patch_stride = patch_size if patch_stride is None else patch_stride
        self.grid_size = patch_grid(self.img_size, patch_size, patch_stride)
        cls_index(1, cls_token)  # raises for an unknown position
        self.cls_token_position = cls_token

        factory = dict(device=device, dtype=dtype)
        self.patch_embed = PatchEmbed(patch_size, patch_stride, in_chans, self.embed_dims, **factory)
        self.pos_embed = nn.Parameter(torch.empty(1, *self.grid_size, self.embed_dims, **factory))
        if cls_token is not None:
            self.cls_token = nn.Parameter(torch.empty(1, 1, self.embed_dims, **factory))
            self.cls_pos_embed = nn.Parameter(torch.empty(1, 1, self.embed_dims, **factory))
        ARMTrunk.reset_parameters(self)  # before the blocks are built: the order determines the weights of a seed
        self.blocks = nn.ModuleList(
            self.block_type(self.embed_dims, scans, rate, self.num_layers, reference_init=reference_init, **factory)
            for rate in self.drop_path_rates(drop_path_rate, self.num_layers)
        )

    def reset_parameters(self) -> None:
        """Initialise the parameters that no submodule holds; `arm_backbone.init_parameters` does the whole model."""
        for name in ("pos_embed", "cls_token", "cls_pos_embed"):
            if hasattr(self, name):
                nn.init.normal_(getattr(self, name), std=0.02)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, in_chans, H, W) -> tokens (B, L, C) with position embedding and class token, and the grid (Gh, Gw).

        The grid is the reference code's, (H - patch_size) // patch_stride + 1; the position embedding is resized to it.
        """
        check_images(images)
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

    def block_outputs(self, x: Tensor, orders: ScanOrders | Tensor) -> Iterator[Tensor]:
        """Run the blocks in turn, with activation checkpointing according to `with_cp`, and yield the output of each.

        A block runs only when its output is requested, so a caller that stops early does not run the remaining blocks.

        Args:
            x: embedded tokens (B, L, C).
            orders: (K, L), or (B, K, L) if images differ.

        Yields:
            (B, L, C)
        """
        for block in self.blocks:
            x = run_checkpointed(block, x, orders, self.with_cp)
            yield x

    def patch_tokens(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, Gh * Gw, C), without the class token."""
        if self.cls_token_position is None:
            return x
        position = cls_index(x.shape[1] - 1, self.cls_token_position)
        return torch.cat([x[:, :position], x[:, position + 1 :]], dim=1)

    def no_weight_decay(self) -> set[str]:
        """Names that the reference code exempts from weight decay: norms, biases, D, position embeddings and tokens."""
        return {name for name, parameter in self.named_parameters() if not is_decayed(name, parameter, "reference")}

    def layer_depth(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning-rate decay.

        0 for the embeddings, i + 1 for block i, num_layers + 1 for the rest.

        Raises:
            AttributeError: if the model has no such parameter.
        """
        if name.startswith(("patch_embed.", "pos_embed", "cls_token", "cls_pos_embed")):
            return 0
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block[1]) + 1
        self.get_parameter(name)
        return self.num_layers + 1


class ARM(ARMTrunk):
    """Backbone for dense prediction: maps images of any size to feature maps at the patch stride.

    Args:
        cls_token: as in `ARMTrunk`, to load a finetuned classifier; the feature maps do not contain it.
        out_indices: blocks (from 0) whose outputs are returned. None: four levels by depth, blocks 3, 5, 7, 11 of 12
            and 7, 11, 15, 23 of 24.
        frozen_stages: -1 trains everything, 0 freezes the embeddings, n freezes them and the first n blocks. Blocks
            after the last of `out_indices` are not run, and frozen.

    The other arguments are as in `ARMTrunk`.

    Raises:
        ValueError: for an argument out of range; the message names it.
    """

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        *,
        patch_size: int = 16,
        patch_stride: int | None = None,
        scans: int = 4,
        cls_token: str | None = None,
        in_chans: int = 3,
        out_indices: tuple[int, ...] | None = None,
        drop_path_rate: float = 0.0,
        with_cp: bool | str = False,
        frozen_stages: int = -1,
    ) -> None:
        super().__init__(
            arch=arch,
            img_size=img_size,
            patch_size=patch_size,
            patch_stride=patch_stride,
            scans=scans,
            cls_token=cls_token,
            in_chans=in_chans,
            drop_path_rate=drop_path_rate,
            with_cp=with_cp,
        )
        self.out_indices = default_out_indices(self.num_layers) if out_indices is None else tuple(out_indices)
        if not self.out_indices or not all(0 <= i < self.num_layers for i in self.out_indices):
            raise ValueError(f"out_indices={out_indices!r}: give block numbers from 0 to {self.num_layers - 1}")
        if list(self.out_indices) != sorted(set(self.out_indices)):
            raise ValueError(f"out_indices={out_indices!r}: give block numbers in ascending order, each once")
        self.out_norms = nn.ModuleList(nn.LayerNorm(self.embed_dims, eps=NORM_EPS) for _ in self.out_indices)
        if not -1 <= frozen_stages <= self.num_layers:
            raise ValueError(f"frozen_stages={frozen_stages!r}: give -1 (none) to {self.num_layers} (all blocks)")
        self.frozen_stages = frozen_stages
        self._freeze()

    def _frozen_modules(self) -> list[nn.Module]:
        return [self.patch_embed, *self.blocks[: self.frozen_stages]] if self.frozen_stages >= 0 else []

    def _freeze(self) -> None:
        not_run = self.blocks[self.out_indices[-1] + 1 :]
        for module in (*self._frozen_modules(), *not_run):
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
        """Append zeros at the right and the bottom until every pixel is in a patch: the grid is ceil(size / stride)."""
        check_images(images)
        stride, patch = self.patch_stride, self.patch_size
        # ceil(s / stride) patches; no negative numbers, whose integer division ONNX rounds towards zero
        height, width = ((s + stride - 1) // stride * stride - stride + patch - s for s in images.shape[2:])
        return F.pad(images, (0, width, 0, height))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, in_chans, H, W), any H and W -> (B, C, ceil(H / stride), ceil(W / stride)) for each of `out_indices`.

        The image is padded with zeros at the right and the bottom to whole patches.
        """
        x, grid = self.embed(self._pad(images))
        outputs = self.block_outputs(x, self.orders(grid))
        maps = []
        for i, x in enumerate(islice(outputs, self.out_indices[-1] + 1)):
            if i in self.out_indices:
                level = self.patch_tokens(self.out_norms[len(maps)](x))
                maps.append(level.transpose(1, 2).unflatten(2, grid).contiguous())
        return tuple(maps)


def default_out_indices(num_layers: int) -> tuple[int, ...]:
    """Blocks (from 0) of four levels, as in XCiT, BEiT and MAE: 3, 5, 7, 11 of 12, and 7, 11, 15, 23 of 24.

    Raises:
        ValueError: for fewer than 4 blocks.
    """
    if num_layers < 4:
        raise ValueError(f"num_layers={num_layers}: four levels need at least 4 blocks; give out_indices")
    indices = []
    for level, part in enumerate((1 / 3, 1 / 2, 2 / 3, 1)):
        lowest, highest = len(indices) and indices[-1] + 1, num_layers - 4 + level
        indices.append(min(max(round(num_layers * part) - 1, lowest), highest))
    return tuple(indices)


TRUNKS: dict[str, type[ARMTrunk]] = {"ARM": ARMTrunk}  # by encoder; another encoder's file adds its own


def trunk_class(encoder: str) -> type[ARMTrunk]:
    """The trunk of an encoder by its name, as in `TRUNKS`.

    Raises:
        ValueError: for another name; it says why an encoder that exists is none of these.
    """
    if encoder in TRUNKS:
        return TRUNKS[encoder]
    why = "is unknown"
    if encoder == "VMamba":
        why = "is hierarchical: it has no class token, and its stages merge tokens; it is not pretrained here"
    elif encoder in ("AIM", "TimmBackbone", "TimmClassifier") or is_model(str(encoder)):
        why = "is of timm, which is not pretrained here: give its authors' weights to TimmBackbone or TimmClassifier"
    raise ValueError(f"encoder={encoder!r} {why}; give one of {', '.join(TRUNKS)}")


def find_trunk(model: nn.Module) -> tuple[str, ARMTrunk] | tuple[None, None]:
    """Find the ARM trunk of a model, or the first of several.

    Returns:
        the prefix of the trunk's parameter names ("" if the model is the trunk) and the trunk, or (None, None).
    """
    for name, module in model.named_modules():
        if isinstance(module, ARMTrunk):
            return f"{name}." if name else "", module
    return None, None
