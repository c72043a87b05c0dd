"""The ARM image classifier (ARM section 4.2), with the methods that timm expects of a vision transformer.

Legend: B batch, L tokens (class token included), C channels, Gh, Gw grid height and width in tokens.
"""

from itertools import islice

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .arm import ARMTrunk
from .block import NORM_EPS
from .scan_order import cls_index

POOLS = ("avg", "token", "")


class ARMClassifier(ARMTrunk):
    """Trunk, norm, pooling and linear head.

    For images of another size than `img_size` the position embedding is resized.

    Args:
        num_classes: 0 for features without a head.
        global_pool: "avg": with a class token in the middle, the mean of the tokens before it and the mean of those
            after it, averaged (reference code); otherwise the mean of all patches. "token": the class token. "": no
            pooling.
        drop_rate: dropout before the head.

    The other arguments are as in `ARMTrunk`.

    Raises:
        ValueError: for an unknown pooling, or "token" without a class token.
    """

    head_std = 0.02  # of the initial head weights

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        *,
        patch_size: int = 16,
        patch_stride: int = 16,
        scans: int = 4,
        cls_token: str | None = "middle",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cp: bool | str = False,
        reference_init: bool = False,
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
            reference_init=reference_init,
        )
        self.num_features = self.head_hidden_size = self.embed_dims
        self.feature_info = [
            dict(module=f"blocks.{i}", num_chs=self.embed_dims, reduction=patch_stride) for i in range(self.num_layers)
        ]
        self.norm = nn.LayerNorm(self.embed_dims, eps=NORM_EPS)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one, and the pooling unless `global_pool` is None."""
        global_pool = self.global_pool if global_pool is None else global_pool
        if global_pool not in POOLS:
            raise ValueError(f"global_pool={global_pool!r} is unknown; give one of {POOLS}")
        if global_pool == "token" and self.cls_token_position is None:
            raise ValueError("global_pool='token' needs a class token; set cls_token='middle' or 'tail'")
        self.num_classes, self.global_pool = num_classes, global_pool
        self.head = nn.Linear(self.embed_dims, num_classes) if num_classes else nn.Identity()
        self.head.to(self.pos_embed.device, self.pos_embed.dtype)
        self._reset_head()

    def _reset_head(self) -> None:
        for module in self.head.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.head_std)
                nn.init.zeros_(module.bias)

    def reset_parameters(self) -> None:
        """Initialise the position embedding, the class token and the head."""
        super().reset_parameters()
        self._reset_head()

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> tokens (B, L, C) after the last norm."""
        x, grid = self.embed(images)
        for output in self.block_outputs(x, self.orders(grid)):
            x = output
        return self.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, C); unchanged if global_pool is ""."""
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
        """Tokens (B, L, C) -> logits (B, num_classes), or the pooled features if `pre_logits`."""
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
        """Outputs of chosen blocks, as timm's models return them.

        Args:
            x: images (B, in_chans, H, W).
            indices: blocks from 0, negative from the end; a number n means the last n; None means all.
            return_prefix_tokens: return each output as a pair with its class token (B, 1, C).
            norm: apply the last norm to every output.
            stop_early: skip the blocks after the last one of `indices`; the tokens are then those of that block.
            output_fmt: "NCHW" for maps (B, C, Gh, Gw), "NLC" for patch tokens (B, Gh * Gw, C).
            intermediates_only: return the outputs alone.

        Returns:
            (tokens as `forward_features` returns them, outputs), or only the outputs.

        Raises:
            ValueError: for an unknown output_fmt.
            AssertionError: for an index that is out of range (timm's).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r}: give 'NCHW' or 'NLC'")
        taken, last = feature_take_indices(len(self.blocks), indices)
        x, grid = self.embed(x)
        intermediates = []
        outputs = self.block_outputs(x, self.orders(grid))
        for i, x in enumerate(islice(outputs, last + 1 if stop_early else None)):
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
        """Remove the blocks after the last of `indices`, with `prune_norm` the norm, with `prune_head` the head.

        Returns:
            the indices, counted from 0.
        """
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
        """Recompute whole blocks in the backward pass, as timm's models do."""
        self.with_cp = "full" if enable else False

    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns with which timm groups parameters into layers, for its layer-wise learning-rate decay."""
        return dict(stem=r"^(?:patch_embed|pos_embed|cls_)", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))])
