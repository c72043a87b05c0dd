"""The pretraining decoder (ARM section 3.2): queries at the next cluster's positions attend to the encoder's tokens.

Legend: B sequences, L encoder tokens, Lq predicted tokens, C encoder channels, E decoder channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sequence import Sequence

HEAD_WIDTH = 64
MAX_DEPTH = 100  # far above the papers' 4; a larger number is a slip, and would fill the memory
QUERIES = 512  # queries per chunk; bounds the attention mask to QUERIES x L


def skip_blocks(num_layers: int, depth: int) -> tuple[int, ...]:
    """Indices of the encoder blocks whose outputs the decoder's `depth` blocks read, from the middle to the last.

    As in the reference code: counted from 1, blocks 6, 8, 10, 12 of 12, and 12, 16, 20, 24 of 24.

    Raises:
        ValueError: if `depth` is not in 1, ..., `MAX_DEPTH`.
    """
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"decoder_depth={depth}: give 1 to {MAX_DEPTH}")
    if depth == 1:
        return (num_layers - 1,)
    half = num_layers / 2
    return tuple(round(half + half * i / (depth - 1)) - 1 for i in range(depth))


class CrossAttention(nn.Module):
    """Multi-head attention of (B, Lq, E) queries to (B, L, E) tokens, each query to its visible prefix only."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, tokens: Tensor, sequence: Sequence) -> Tensor:
        q = self.q(query).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, Lq, E / heads)
        k, v = self.kv(tokens).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        visible = sequence.visible(q.device)
        keys, parts = torch.arange(tokens.shape[1], device=q.device), []
        for start in range(0, q.shape[2], QUERIES):
            part, sees = q[:, :, start : start + QUERIES], visible[start : start + QUERIES]
            n = sequence.most_visible(start + len(sees))  # keys beyond n are masked for the whole chunk
            mask = keys[:n] < sees[:, None]
            parts.append(F.scaled_dot_product_attention(part, k[:, :, :n], v[:, :, :n], attn_mask=mask))
        x = torch.cat(parts, 2)
        return self.proj(x.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """`q + attention(norm(q), norm(tokens))`, then `q + mlp(norm(q))`. Queries do not attend to each other."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim)
        self.norm_tokens = nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, num_heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, query: Tensor, tokens: Tensor, sequence: Sequence) -> Tensor:
        query = query + self.attention(self.norm_query(query), self.norm_tokens(tokens), sequence)
        return query + self.mlp(self.norm_mlp(query))


class Decoder(nn.Module):
    """Predicts patches from the outputs of several encoder blocks (skip features).

    Args:
        encoder_dim: C.
        dim: E, a multiple of 64 (one head per 64 channels).
        depth: number of blocks; each reads one skip feature.
        out_dim: number of predicted values per patch.

    Raises:
        ValueError: if `dim` is not a multiple of 64.
    """

    def __init__(self, encoder_dim: int, dim: int, depth: int, out_dim: int) -> None:
        super().__init__()
        if dim % HEAD_WIDTH:
            raise ValueError(f"decoder_dim={dim} must be a multiple of {HEAD_WIDTH}, the channels of a head")
        self.skip_norms = nn.ModuleList(nn.LayerNorm(encoder_dim) for _ in range(depth))
        self.skip_proj = nn.Linear(depth * encoder_dim, depth * dim)
        self.blocks = nn.ModuleList(DecoderBlock(dim, dim // HEAD_WIDTH) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the linear layers as the reference code does."""
        for linear in (self.skip_proj, self.head):
            bound = linear.in_features**-0.5
            nn.init.uniform_(linear.weight, -bound, bound)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def latents(self, skips: list[Tensor]) -> Tensor:
        """`depth` skip features (B, L, C) -> (B, L, E, depth); block i reads slice i."""
        normed = [norm(x) for norm, x in zip(self.skip_norms, skips, strict=True)]
        return self.skip_proj(torch.cat(normed, dim=2)).unflatten(2, (-1, len(self.blocks)))

    def forward(self, query: Tensor, skips: list[Tensor], sequence: Sequence) -> Tensor:
        """Predict the targets of a sequence.

        Args:
            query: (B, Lq, E).
            skips: `depth` tensors (B, L, C).
            sequence: determines which encoder tokens each query may attend to.

        Returns:
            (B, Lq, out_dim)
        """
        latents = self.latents(skips)
        for i, block in enumerate(self.blocks):
            query = block(query, latents[..., i], sequence)
        return self.head(self.norm(query))
