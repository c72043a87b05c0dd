"""The pretraining decoder (ARM section 3.2): queries for the next cluster look at the encoder's tokens.

Legend: B batch, L encoder tokens, Lq predicted tokens, C encoder channels, E decoder channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sequence import Sequence

HEAD_WIDTH = 64
QUERIES = 512  # that attend together: their mask is all the memory that pairs of tokens take


def skip_blocks(num_layers: int, depth: int) -> tuple[int, ...]:
    """Blocks (from 0) whose outputs the decoder reads, one for each of its `depth` blocks, from the middle to the last.

    After blocks 6, 8, 10, 12 of 12 and 12, 16, 20, 24 of 24, counted from 1, as in the reference code.
    """
    if depth == 1:
        return (num_layers - 1,)
    half = num_layers / 2
    return tuple(round(half + half * i / (depth - 1)) - 1 for i in range(depth))


class CrossAttention(nn.Module):
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
            n = sequence.most_visible(start + len(sees))  # nobody sees what comes after
            mask = keys[:n] < sees[:, None]
            parts.append(F.scaled_dot_product_attention(part, k[:, :, :n], v[:, :, :n], attn_mask=mask))
        x = torch.cat(parts, 2)
        return self.proj(x.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """`q + attention(norm(q), norm(tokens))`, then `q + mlp(norm(q))`; no attention among the queries."""

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
    """Skip features to predictions.

    Args:
        encoder_dim: channels C of the encoder's tokens.
        dim: decoder width E, a multiple of 64 (one head each).
        depth: blocks, each reading one skip feature.
        out_dim: values predicted per patch.
    """

    def __init__(self, encoder_dim: int, dim: int, depth: int, out_dim: int) -> None:
        super().__init__()
        if dim % HEAD_WIDTH:
            raise ValueError(f"decoder_dim={dim} must be a multiple of {HEAD_WIDTH} (heads of {HEAD_WIDTH} channels)")
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
        """Skip features, `depth` times (B, L, C) -> (B, L, E, depth): block i reads slice i."""
        normed = [norm(x) for norm, x in zip(self.skip_norms, skips, strict=True)]
        return self.skip_proj(torch.cat(normed, dim=2)).unflatten(2, (-1, len(self.blocks)))

    def forward(self, query: Tensor, skips: list[Tensor], sequence: Sequence) -> Tensor:
        """query (B, Lq, E), skip features of L tokens -> (B, Lq, out_dim); the sequence says who sees whom."""
        latents = self.latents(skips)
        for i, block in enumerate(self.blocks):
            query = block(query, latents[..., i], sequence)
        return self.head(self.norm(query))
