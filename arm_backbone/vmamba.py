"""VMamba (arXiv 2401.10166, second version), the hierarchical Mamba encoder that ARM's Table 2 compares with.

Legend: B batch, H, W height and width of an image or a map, C channels.
"""

import re
from collections.abc import Iterator

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .drop_path import linear_rates
from .ops.library import check_images
from .ops.norm import add_layer_norm, layer_norm
from .ops.orders import ScanOrders
from .parameters import own_linears
from .recompute import resolve_with_cp, run_recomputed
from .ss2d import NORM_EPS, SS2D, ss2d_orders

STRIDES = (4, 8, 16, 32)
# the released models: T s1l8, S s2l15 and B s2l15 of the authors' code
VMAMBA_ARCHS = {
    "tiny": dict(widths=(96, 192, 384, 768), depths=(2, 2, 8, 2), expand=1),
    "small": dict(widths=(96, 192, 384, 768), depths=(2, 2, 15, 2), expand=2),
    "base": dict(widths=(128, 256, 512, 1024), depths=(2, 2, 15, 2), expand=2),
}


def resolve_vmamba_arch(arch: str | dict) -> dict:
    """The dict of `VMAMBA_ARCHS` of this name; a dict with exactly its three keys is returned with whole numbers."""
    if isinstance(arch, str) and arch in VMAMBA_ARCHS:
        return VMAMBA_ARCHS[arch]
    if not isinstance(arch, dict) or set(arch) != {"widths", "depths", "expand"}:
        raise ValueError(
            f"arch={arch!r}: give one of {', '.join(VMAMBA_ARCHS)}, or a dict with widths, depths and expand"
        )
    if not len(arch["widths"]) == len(arch["depths"]) == len(STRIDES):
        raise ValueError(f"arch={dict(arch)!r}: widths and depths need {len(STRIDES)} numbers each, one per stage")
    numbers = (*arch["widths"], *arch["depths"], arch["expand"])
    if not all(isinstance(n, (int, float)) and n >= 1 and n == int(n) for n in numbers) or arch["widths"][0] % 2:
        raise ValueError(
            f"arch={dict(arch)!r}: give whole numbers from 1, and an even first width (the stem halves it)"
        )
    widths, depths = (tuple(int(n) for n in arch[key]) for key in ("widths", "depths"))
    return dict(widths=widths, depths=depths, expand=int(arch["expand"]))


class ConvNorm(nn.Module):
    """3 x 3 convolution with stride 2, then LayerNorm: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), dim_out)."""

    def __init__(self, dim: int, dim_out: int, device=None, dtype=None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim_out, eps=NORM_EPS, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(x.to(self.norm.weight.dtype))  # under autocast: the residual stream is float32


class MLP(nn.Module):
    """`fc2(gelu(fc1(x)))`, 4 times as wide inside."""

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim, device=device, dtype=dtype)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights with std 0.02, zero biases."""
        for linear in own_linears(self, "fc1", "fc2"):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class VMambaBlock(nn.Module):
    """`x + drop_path(mixer(norm1(x)))`, then `x + drop_path(mlp(norm2(x)))`; the branches drop independently.

    Args:
        dim: channels.
        expand: as in `SS2D`.
        drop_path: stochastic depth rate of both branches, drawn per sample.
        device, dtype: of the parameters.
    """

    def __init__(self, dim: int, expand: int, drop_path: float, device=None, dtype=None) -> None:
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS, **factory)
        self.mixer = SS2D(dim, expand, **factory)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS, **factory)
        self.mlp = MLP(dim, **factory)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, orders: ScanOrders | Tensor) -> Tensor:
        """x (B, H, W, C), orders (4, H W) -> (B, H, W, C)."""
        branch = self.drop_path(self.mixer(layer_norm(x, self.norm1), orders))
        x, normed = add_layer_norm(x, branch, self.norm2)
        return x + self.drop_path(self.mlp(normed))


class Stage(nn.Module):
    """Blocks of one width, and the step to the next stage's resolution and width.

    Attributes:
        downsample: None in the last stage.
    """

    def __init__(
        self, dim: int, dim_next: int | None, expand: int, drop_path: list[float], device=None, dtype=None
    ) -> None:
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        self.blocks = nn.ModuleList(VMambaBlock(dim, expand, rate, **factory) for rate in drop_path)
        self.downsample = None if dim_next is None else ConvNorm(dim, dim_next, **factory)


class VMambaTrunk(nn.Module):
    """Stem and stages: what backbone and classifier share.

    Args:
        arch: name in `VMAMBA_ARCHS`, or a dict with widths and depths of the four stages, and expand.
        in_chans: image channels.
        drop_path_rate: stochastic depth rate of the last block; it rises linearly from 0 in the first.
        with_cp: activation checkpointing of each block, False, "selective" or "full", as in `ARMTrunk`.
        device, dtype: of the parameters.

    Raises:
        ValueError: for an argument out of range; the message names it.
    """

    encoder_name = "VMamba"  # in messages

    def __init__(
        self,
        arch: str | dict = "base",
        *,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        with_cp: bool | str = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.with_cp = resolve_with_cp(with_cp)
        arch = resolve_vmamba_arch(arch)
        self.widths, self.depths, self.in_chans = tuple(arch["widths"]), tuple(arch["depths"]), in_chans
        self.num_layers = sum(self.depths)
        factory = dict(device=device, dtype=dtype)
        half = self.widths[0] // 2
        self.stem = nn.Sequential(
            ConvNorm(in_chans, half, **factory), nn.GELU(), ConvNorm(half, self.widths[0], **factory)
        )
        rates = iter(linear_rates(drop_path_rate, self.num_layers))
        self.stages = nn.ModuleList(
            Stage(dim, dim_next, arch["expand"], [next(rates) for _ in range(depth)], **factory)
            for dim, dim_next, depth in zip(self.widths, (*self.widths[1:], None), self.depths, strict=True)
        )

    def stage_outputs(self, images: Tensor) -> Iterator[Tensor]:
        """Run the stages in turn on images (B, in_chans, H, W), and yield the output of each before its downsampling.

        A stage runs only when its output is requested, so a caller that stops early does not run the remaining ones.

        Yields:
            (B, ceil(H / stride), ceil(W / stride), C), with the strides 4, 8, 16 and 32.
        """
        check_images(images)
        x = self.stem(images.permute(0, 2, 3, 1))
        for stage in self.stages:
            orders = ss2d_orders(*x.shape[1:3], device=x.device)
            for block in stage.blocks:
                x = run_recomputed(block, x, orders, self.with_cp)
            yield x
            if stage.downsample is not None:
                x = stage.downsample(x)

    def layer_depth(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning-rate decay.

        0 for the stem, i + 1 for block i counted through all stages, the next block's depth for what downsamples to it,
        and num_layers + 1 for the rest.

        Raises:
            AttributeError: if the model has no such parameter.
        """
        self.get_parameter(name)
        if name.startswith("stem."):
            return 0
        place = re.match(r"stages\.(\d+)\.(?:blocks\.(\d+)|downsample)\.", name)
        if not place:
            return self.num_layers + 1
        stage = int(place[1])
        within = self.depths[stage] if place[2] is None else int(place[2])
        return sum(self.depths[:stage]) + within + 1

    def no_weight_decay(self) -> set[str]:
        """Names that VMamba's training exempts from weight decay: vectors and biases.

        Of the parameters with a leading dimension for the directions D is a vector in the authors' code; A_log and the
        delta biases are matrices there, and decay.
        """
        return {n for n, p in self.named_parameters() if p.ndim <= 1 or n.endswith((".bias", ".D"))}


class VMamba(VMambaTrunk):
    """Backbone for dense prediction: maps images of any size to feature maps with strides 4, 8, 16 and 32.

    Args:
        out_indices: stages (from 0) whose outputs are returned, each normalized by its own LayerNorm.
        frozen_stages: -1 trains everything, 0 freezes the stem, n freezes it and the first n stages. What follows the
            last of `out_indices` is not run, and frozen.

    The other arguments are as in `VMambaTrunk`.

    Raises:
        ValueError: for an argument out of range; the message names it.
    """

    def __init__(
        self,
        arch: str | dict = "base",
        *,
        in_chans: int = 3,
        out_indices: tuple[int, ...] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        with_cp: bool | str = False,
        frozen_stages: int = -1,
    ) -> None:
        super().__init__(arch, in_chans=in_chans, drop_path_rate=drop_path_rate, with_cp=with_cp)
        self.out_indices = tuple(out_indices)
        if not self.out_indices or list(self.out_indices) != sorted(set(self.out_indices) & {0, 1, 2, 3}):
            raise ValueError(f"out_indices={out_indices!r}: give stage numbers from 0 to 3 in ascending order")
        if not -1 <= frozen_stages <= len(STRIDES):
            raise ValueError(f"frozen_stages={frozen_stages!r}: give -1 (none) to {len(STRIDES)} (all stages)")
        self.out_norms = nn.ModuleList(nn.LayerNorm(self.widths[i], eps=NORM_EPS) for i in self.out_indices)
        self.frozen_stages = frozen_stages
        last = self.out_indices[-1]
        unused = [self.stages[last].downsample, *self.stages[last + 1 :]]
        for module in filter(None, (*self._frozen_modules(), *unused)):
            module.requires_grad_(False)

    def _frozen_modules(self) -> list[nn.Module]:
        return [self.stem, *self.stages[: self.frozen_stages]] if self.frozen_stages >= 0 else []

    def train(self, mode: bool = True) -> "VMamba":
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()  # no drop path in frozen blocks
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, in_chans, H, W), any H and W -> (B, C, ceil(H / stride), ceil(W / stride)) for each of `out_indices`."""
        maps = []
        for i, x in enumerate(self.stage_outputs(images)):
            if i in self.out_indices:
                maps.append(self.out_norms[len(maps)](x).permute(0, 3, 1, 2).contiguous())
            if i == self.out_indices[-1]:
                break
        return tuple(maps)
