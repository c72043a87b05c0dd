"""The fixed position embedding of an encoder in pretraining."""

import torch

from arm_backbone.arm import ARMTrunk
from arm_backbone.pos_embed import sincos_pos_embed


@torch.no_grad()
def fix_positions(encoder: ARMTrunk) -> None:
    """Set the position embedding to the sin-cos table, and a class token's position to zero; neither is trained."""
    encoder.pos_embed.requires_grad_(False).copy_(sincos_pos_embed(*encoder.grid_size, encoder.embed_dims))
    if encoder.cls_token_position is not None:
        encoder.cls_pos_embed.requires_grad_(False).zero_()
