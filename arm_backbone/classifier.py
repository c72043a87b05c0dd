"""The ARM image classifier (ARM section 4.2) and its names in timm's registry.

Legend: B batch, L tokens (class token included), C channels.
"""

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .arm import ARMTrunk
from .block import NORM_EPS
from .scan_order import cls_index

POOLS = ("avg", "token", "")


class ARMClassifier(ARMTrunk):
    """Trunk, norm, pooling and a linear head; the contract of timm's vision transformers.

    Args:
        num_classes: 0 for features without a head.
        global_pool: "avg": the mean of the tokens before the class token and the mean of those after it, averaged (the
            reference code; with a tail token or none, the mean of all patches); "token": the class token; "": none.
        drop_rate: dropout before the head.

    The other arguments are those of `ARMTrunk`. Images of another size than `img_size` are taken as they are, with the
    position embedding resized.

    Raises:
        ValueError: for another pooling, or "token" without a class token.
    """

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        patch_stride: int = 16,
        scans: int = 4,
        cls_token: str | None = "middle",
        num_classes: int = 1000,
        global_pool: str = "avg",
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        with_cp: bool | str = False,
        reference_init: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(
            arch,
            img_size,
            patch_size,
            patch_stride,
            scans,
            cls_token,
            in_chans,
            drop_path_rate,
            with_cp,
            reference_init,
        )
        self.num_features = self.head_hidden_size = self.embed_dims
        self.feature_info = [
            dict(module=f"blocks.{i}", num_chs=self.embed_dims, reduction=patch_stride) for i in range(self.num_layers)
        ]
        self.norm = nn.LayerNorm(self.embed_dims, eps=NORM_EPS)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head, and another pooling if one is given."""
        global_pool = self.global_pool if global_pool is None else global_pool
        if global_pool not in POOLS:
            raise ValueError(f"global_pool={global_pool!r} is unknown; give one of {POOLS}")
        if global_pool == "token" and self.cls_token_position is None:
            raise ValueError("global_pool='token' needs a class token; set cls_token='middle' or 'tail'")
        self.num_classes, self.global_pool = num_classes, global_pool
        self.head = nn.Linear(self.embed_dims, num_classes) if num_classes else nn.Identity()
        if num_classes:
            self.head.to(self.pos_embed.device, self.pos_embed.dtype)
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> normed tokens (B, L, C)."""
        x, grid = self.embed(images)
        orders = self.orders(grid)
        for i in range(len(self.blocks)):
            x = self.run_block(i, x, orders)
        return self.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, C), or as it is without pooling."""
        if not self.global_pool:
            return x
        if self.cls_token_position is None:
            return x.mean(1)
        position = cls_index(x.shape[1] - 1, self.cls_token_position)
        if self.global_pool == "token":
            return x[:, position]
        if self.cls_token_position == "tail":
            return x[:, :position].mean(1)
        return (x[:, :position].mean(1) + x[:, position + 1 :].mean(1)) / 2

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, L, C) -> logits (B, num_classes), or with `pre_logits` the pooled features."""
        x = self.pool(x)
        return x if pre_logits else self.head(self.head_drop(x))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list | tuple[Tensor, list]:
        """Outputs of blocks as timm gives them: maps (B, C, Gh, Gw) or, as "NLC", patch tokens.

        With `return_prefix_tokens` each comes with its class token (B, 1, C). Unless `intermediates_only`, the result
        is (features, intermediates).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r}: give 'NCHW' or 'NLC'")
        taken, last = feature_take_indices(len(self.blocks), indices)
        x, grid = self.embed(x)
        orders = self.orders(grid)
        intermediates = []
        for i in range(last + 1 if stop_early else len(self.blocks)):
            x = self.run_block(i, x, orders)
            if i not in taken:
                continue
            tokens = self.norm(x) if norm else x
            patches = self.patch_tokens(tokens)
            if output_fmt == "NCHW":
                patches = patches.transpose(1, 2).unflatten(2, grid).contiguous()
            if return_prefix_tokens and self.cls_token_position is not None:
                position = cls_index(tokens.shape[1] - 1, self.cls_token_position)
                patches = (patches, tokens[:, position : position + 1])
            intermediates.append(patches)
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last of `indices`; returns the indices from the front."""
        taken, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute whole blocks in the backward, as timm's models do."""
        self.with_cp = "all" if enable else False

    def group_matcher(self, coarse: bool = False) -> dict:
        """timm's grouping of parameters by depth, for its layer decay."""
        return dict(stem=r"^(?:patch_embed|pos_embed|cls_)", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))])
