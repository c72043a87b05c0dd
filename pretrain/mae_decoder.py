"""The decoder of MAE (section 3): the encoder's tokens and mask tokens, in their places, predict all patches.

Legend: B images, L tokens of an image (class token included), Lk tokens that the encoder has read, C encoder channels,
E decoder channels.
"""

from functools import partial

from timm.models.vision_transformer import Block as AttentionBlock
from torch import Tensor, nn

from arm_backbone.block import Block as MambaBlock
from arm_backbone.ops import ScanOrders

BLOCKS = ("attention", "mamba")
NORM_EPS = 1e-6
MAX_DEPTH = 100  # far above the paper's 8; a larger number is a slip, and would fill the memory


class MAEDecoder(nn.Module):
    """Predicts the values of every patch from the tokens that the encoder has read.

    Args:
        encoder_dim: C.
        dim: E; for attention a multiple of `heads`.
        depth: number of blocks.
        out_dim: values of a patch.
        blocks: "attention" (MAE's), or "mamba": ARM's block with four scans, which see both sides of a masked patch.
        heads: of the attention blocks.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(self, encoder_dim: int, dim: int, depth: int, out_dim: int, blocks: str, heads: int) -> None:
        super().__init__()
        if blocks not in BLOCKS:
            raise ValueError(f"decoder_blocks={blocks!r} is unknown; give one of {', '.join(BLOCKS)}")
        if not 1 <= depth <= MAX_DEPTH:
            raise ValueError(f"decoder_depth={depth}: give 1 to {MAX_DEPTH}")
        if blocks == "attention" and (heads < 1 or dim % heads):
            raise ValueError(f"decoder_dim={dim} must be a multiple of decoder_heads={heads}")
        norm = partial(nn.LayerNorm, eps=NORM_EPS)
        self.norm_tokens = norm(encoder_dim)
        self.embed = nn.Linear(encoder_dim, dim)
        self.is_attention = blocks == "attention"
        if self.is_attention:
            made = [AttentionBlock(dim, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)]
        else:
            made = [MambaBlock(dim, 4, 0.0, depth) for _ in range(depth)]
        self.blocks = nn.ModuleList(made)
        self.norm = norm(dim)
        self.head = nn.Linear(dim, out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """MAE's initialisation: Xavier's uniform weights, zero biases. Mamba blocks keep their own."""
        modules = [self.embed, self.head, *(self.blocks.modules() if self.is_attention else ())]
        for module in modules:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self, tokens: Tensor, kept: Tensor, mask_token: Tensor, positions: Tensor, orders: ScanOrders
    ) -> Tensor:
        """Decode a whole image.

        Args:
            tokens: (B, Lk, C), outputs of the encoder.
            kept: (B, Lk) int64, their places in the sequence of an image.
            mask_token: (1, 1, E), for all other places.
            positions: (1, L, E), position embedding.
            orders: (4, L), for the scans of Mamba blocks.

        Returns:
            (B, L, out_dim)
        """
        tokens = self.embed(self.norm_tokens(tokens))
        x = mask_token.to(tokens.dtype).expand(len(tokens), positions.shape[1], -1)
        x = x.scatter(1, kept.unsqueeze(2).expand_as(tokens), tokens) + positions
        for block in self.blocks:
            x = block(x) if self.is_attention else block(x, orders)
        return self.head(self.norm(x))
