"""From stride-16 maps of a plain backbone to a pyramid of strides 4, 8, 16 and 32 (recipes of XCiT, BEiT and MAE)."""

from torch import Tensor, nn

NORMS = {
    "BN": lambda channels, **kwargs: nn.BatchNorm2d(channels, **kwargs),
    "SyncBN": lambda channels, **kwargs: nn.SyncBatchNorm(channels, **kwargs),
    "GN": lambda channels, num_groups=32, **kwargs: nn.GroupNorm(num_groups, channels, **kwargs),
}


class ARMPyramid(nn.Module):
    """Four equal maps to four resolutions: x4 (deconv, norm, GELU, deconv), x2 (deconv), x1, and x1/2 (max pool).

    Args:
        in_channels: channels of every map, kept.
        norm_cfg: `type` BN, SyncBN (many GPUs) or GN (one GPU, tiny batches) and its arguments; the only norm is the
            one between the two deconvolutions.
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
                nn.MaxPool2d(2, 2, ceil_mode=True),  # an odd grid keeps its last row and column
            ]
        )

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Four (B, C, h, w) -> (B, C, 4h, 4w), (B, C, 2h, 2w), (B, C, h, w), (B, C, ceil(h/2), ceil(w/2))."""
        if len(maps) != len(self.scales):
            raise ValueError(
                f"the pyramid takes {len(self.scales)} maps, not {len(maps)}; see the backbone's out_indices"
            )
        return tuple(scale(x) for scale, x in zip(self.scales, maps, strict=True))
