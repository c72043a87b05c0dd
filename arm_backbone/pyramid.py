"""Turns the stride-16 maps of a plain backbone into a pyramid of strides 4, 8, 16 and 32 (as in XCiT, BEiT and MAE)."""

from torch import Tensor, nn

NORMS = {
    "BN": lambda channels, **kwargs: nn.BatchNorm2d(channels, **kwargs),
    "SyncBN": lambda channels, **kwargs: nn.SyncBatchNorm(channels, **kwargs),
    "GN": lambda channels, num_groups=32, **kwargs: nn.GroupNorm(num_groups, channels, **kwargs),
}


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
                    nn.ConvTranspose2d(in_channels, in_channels, 2, 2),
                    NORMS[kind](in_channels, **norm_cfg),
                    nn.GELU(),
                    nn.ConvTranspose2d(in_channels, in_channels, 2, 2),
                ),
                nn.ConvTranspose2d(in_channels, in_channels, 2, 2),
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
