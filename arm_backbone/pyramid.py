"""Turns the stride-16 maps of a plain backbone into pyramids: of four maps (as in XCiT, BEiT and MAE), or of the last
one (as in ViTDet)."""

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

NORMS = {
    "BN": lambda channels, **kwargs: nn.BatchNorm2d(channels, **kwargs),
    "SyncBN": lambda channels, **kwargs: nn.SyncBatchNorm(channels, **kwargs),
    "GN": lambda channels, num_groups=32, **kwargs: nn.GroupNorm(num_groups, channels, **kwargs),
}


class Doubling(nn.ConvTranspose2d):
    """Doubles the height and width of a map (B, C, H, W): a 2 x 2 deconvolution with stride 2, as one matrix product.

    No two outputs overlap, so each input token yields a square of 2 x 2 outputs. The result is channels-last.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * out_channels, C)
        squares = F.linear(x.permute(0, 2, 3, 1), weight, self.bias.repeat(4)).unflatten(3, (2, 2, -1))
        y = squares.transpose(2, 3).reshape(-1, 2 * height, 2 * width, self.out_channels)
        return y.permute(0, 3, 1, 2)


class ARMPyramid(nn.Module):
    """Resizes four maps of one size: x4 (deconv, norm, GELU, deconv), x2 (deconv), x1, and x1/2 (max pool).

    Args:
        in_channels: channels of every input and output map.
        norm_cfg: `type` and arguments of the norm between the two deconvolutions: "BN", "SyncBN" (several GPUs) or
            "GN" (one GPU, small batches).

    Raises:
        ValueError: for an unknown norm type.
    """

    def __init__(self, in_channels: int, norm_cfg: dict) -> None:
        super().__init__()
        norm_cfg = dict(norm_cfg)
        kind = norm_cfg.pop("type", None)
        if kind not in NORMS:
            raise ValueError(f"norm_cfg type={kind!r} is unknown; give one of {', '.join(NORMS)}")
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    Doubling(in_channels, in_channels),
                    NORMS[kind](in_channels, **norm_cfg),
                    nn.GELU(),
                    Doubling(in_channels, in_channels),
                ),
                Doubling(in_channels, in_channels),
                nn.Identity(),
                nn.MaxPool2d(2, 2, ceil_mode=True),  # keeps the last row and column of an odd grid
            ]
        )

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Four maps (B, C, h, w) -> (B, C, 4h, 4w), (B, C, 2h, 2w), (B, C, h, w), (B, C, ceil(h/2), ceil(w/2))."""
        if len(maps) != len(self.scales):
            raise ValueError(
                f"the pyramid needs {len(self.scales)} maps, not {len(maps)}; set the backbone's out_indices"
            )
        return tuple(scale(x) for scale, x in zip(self.scales, maps, strict=True))


class ARMSimpleFPN(nn.Module):
    """ViTDet's pyramid (arXiv 2203.16527, section 3): every level comes from the last map alone.

    x4 (deconv, norm, GELU, deconv), x2 (deconv), x1, and x1/2 (max pool); each followed by a 1 x 1 and a 3 x 3
    convolution, both with a LayerNorm over channels. Further levels take every second position of the one before.

    Args:
        in_channels: channels of the input map, a multiple of 4.
        out_channels: channels of every level.
        num_outs: number of levels, at least 4.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, num_outs: int = 5) -> None:
        super().__init__()
        if in_channels % 4:
            raise ValueError(f"in_channels={in_channels!r}: give a multiple of 4; the finest level has a quarter")
        if num_outs < 4:
            raise ValueError(f"num_outs={num_outs!r}: the pyramid has at least 4 levels")
        half, quarter = in_channels // 2, in_channels // 4
        scales = [
            [
                Doubling(in_channels, half),
                LayerNorm2d(half),
                nn.GELU(),
                Doubling(half, quarter),
            ],
            [Doubling(in_channels, half)],
            [],
            [nn.MaxPool2d(2, 2, ceil_mode=True)],  # keeps the last row and column of an odd grid
        ]
        widths = (quarter, half, in_channels, in_channels)
        self.levels = nn.ModuleList(
            nn.Sequential(
                *scale,
                nn.Conv2d(width, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for scale, width in zip(scales, widths, strict=True)
        )
        self.num_outs = num_outs

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One map (B, C, h, w) -> (B, out_channels, 4h, 4w), (2h, 2w), (h, w), (ceil(h/2), ceil(w/2)), and so on."""
        if len(maps) != 1:
            raise ValueError(f"the pyramid needs the last map alone, not {len(maps)}; set the backbone's out_indices")
        outputs = [level(maps[0]) for level in self.levels]
        while len(outputs) < self.num_outs:
            outputs.append(F.max_pool2d(outputs[-1], 1, 2))
        return tuple(outputs)
