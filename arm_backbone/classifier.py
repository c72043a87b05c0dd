"""The ARM image classifier (ARM section 4.2), with the methods that timm expects of a vision transformer.

Legend: B batch, L tokens (class token included), C channels, Gh, Gw grid height and width in tokens.
"""

from itertools import islice

import torch
from timm.layers import AttentionPoolLatent, resample_patch_embed, to_2tuple
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .arm import ARMTrunk, patch_grid
from .block import NORM_EPS
from .parameters import init_parameters
from .pos_embed import resize_pos_embed
from .scan_order import cls_index

try:
    from timm.models._input import update_model_input_size
except ImportError:  # older versions keep no record of a changed input size
    update_model_input_size = None

POOLS = ("avg", "avgmax", "max", "map", "token", "")


class PoolError(ValueError, AssertionError):
    """A pooling that a model cannot have; also an AssertionError, because timm's models raise that."""


def reset_head(head: nn.Module, std: float) -> None:
    """Initialise the linear layers of a head: normal weights, zero biases."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:  # in a head of the user's own
                nn.init.zeros_(module.bias)


class ARMClassifier(ARMTrunk):
    """Trunk, norm, pooling and linear head.

    For images of another size than `img_size` the position embedding is resized.

    Args:
        num_classes: 0 for features without a head.
        global_pool: "avg": with a class token in the middle, the mean of the tokens before it and the mean of those
            after it, averaged (reference code); otherwise the mean of all patches. "max": the maximum of all patches.
            "avgmax": the mean of "avg" and "max". "map": attention pooling of the patches, with a learned query.
            "token": the class token. "": no pooling.
        drop_rate: dropout before the head.

    The other arguments are as in `ARMTrunk`.

    Raises:
        PoolError: for an unknown pooling, or "token" without a class token.
    """

    head_std = 0.02  # of the initial head weights
    is_init = True  # an OpenMMLab model that contains this one does not call `init_weights`, which would reset it

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        *,
        patch_size: int = 16,
        patch_stride: int | None = None,
        scans: int = 4,
        cls_token: str | None = "middle",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cp: bool | str = False,
        reference_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
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
            device=device,
            dtype=dtype,
        )
        self.num_features = self.head_hidden_size = self.embed_dims
        self._describe_features()
        self.norm = self.norm_type(self.embed_dims, eps=NORM_EPS, device=device, dtype=dtype)
        self.attn_pool = self._attention_pool(device=device, dtype=dtype) if global_pool == "map" else None
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one, and the pooling unless `global_pool` is None.

        Raises:
            PoolError: for a pooling that the model cannot have; "map" has to be given at construction.
        """
        global_pool = self.global_pool if global_pool is None else global_pool
        self._check_pool(global_pool)
        if global_pool == "map" and self.attn_pool is None:
            raise PoolError("global_pool='map' has weights of its own; create the model with it")
        if global_pool != "map":
            self.attn_pool = None
        self.num_classes, self.global_pool = num_classes, global_pool
        factory = dict(device=self.pos_embed.device, dtype=self.pos_embed.dtype)
        self.head = nn.Linear(self.embed_dims, num_classes, **factory) if num_classes else nn.Identity()
        self.head.train(self.training)
        reset_head(self.head, self.head_std)

    def _check_pool(self, pool: str) -> None:
        if pool not in POOLS:
            raise PoolError(f"global_pool={pool!r} is unknown; give one of {POOLS}")
        if pool == "token" and self.cls_token_position is None:
            raise PoolError("global_pool='token' needs a class token; set cls_token='middle' or 'tail'")

    def _attention_pool(self, device, dtype) -> nn.Module:
        heads = self.embed_dims // 64 if self.embed_dims % 64 == 0 else 1
        return AttentionPoolLatent(
            self.embed_dims, num_heads=heads, norm_layer=nn.LayerNorm, device=device, dtype=dtype
        )

    def _describe_features(self) -> None:
        self.feature_info = [
            dict(module=f"blocks.{i}", num_chs=self.embed_dims, reduction=self.patch_stride)
            for i in range(self.num_layers)
        ]

    def reset_parameters(self) -> None:
        """Initialise the position embedding, the class token and the head."""
        super().reset_parameters()
        reset_head(self.head, self.head_std)

    def init_weights(self) -> None:
        """Initialise every parameter, for example after `to_empty` of a model built on the meta device."""
        init_parameters(self)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Resize the position embedding for another image size, and the patch embedding for another patch size.

        Args:
            img_size: pixels, one number or (height, width); None keeps it.
            patch_size: pixels; patches that did not overlap stay adjacent. None keeps it.

        Raises:
            ValueError: for patches that are not square, or an image smaller than a patch; the model is unchanged.
        """
        size = self.img_size if img_size is None else to_2tuple(img_size)
        patch, width = to_2tuple(self.patch_size if patch_size is None else patch_size)
        if patch != width:
            raise ValueError(f"patch_size={patch_size!r}: ARM's patches are square; give one number")
        stride = patch if self.patch_stride == self.patch_size else self.patch_stride
        grid = patch_grid(size, patch, stride)
        self._set_patch_size(patch, stride)
        if grid != self.grid_size:
            table = resize_pos_embed(self.pos_embed.detach(), *grid)
            self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)
        self.img_size, self.grid_size = size, grid
        self._describe_features()
        if update_model_input_size is not None:
            update_model_input_size(self, size, patch_size=patch_size)

    def _set_patch_size(self, size: int, stride: int) -> None:
        proj = self.patch_embed.proj
        if size != self.patch_size:
            kernel = resample_patch_embed(proj.weight.detach(), [size, size])
            proj.weight = nn.Parameter(kernel, requires_grad=proj.weight.requires_grad)
        proj.kernel_size, proj.stride = (size, size), (stride, stride)
        self.patch_size, self.patch_stride = size, stride

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> tokens (B, L, C) after the last norm."""
        x, grid = self.embed(images)
        for output in self.block_outputs(x, self.orders(grid)):
            x = output
        return self.norm(x)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """(B, L, C) -> (B, C) by `pool_type`, or by global_pool if it is None; unchanged if that is "".

        Raises:
            PoolError: for a pooling that the model cannot have.
        """
        pool = self.global_pool if pool_type is None else pool_type
        self._check_pool(pool)
        if not pool:
            return x
        if pool == "token":
            return x[:, cls_index(x.shape[1] - 1, self.cls_token_position)]
        if pool == "map":
            if self.attn_pool is None:
                raise PoolError("global_pool='map' has weights of its own; create the model with it")
            return self.attn_pool(self.patch_tokens(x))
        if pool == "avg":
            return self._mean(x)
        largest = self.patch_tokens(x).amax(1)
        return largest if pool == "max" else (self._mean(x) + largest) / 2

    def _mean(self, x: Tensor) -> Tensor:
        """Mean of the patches (B, C), as the reference code takes it; see `global_pool`."""
        position = cls_index(x.shape[1] - 1, self.cls_token_position)
        if self.cls_token_position != "middle":
            return x[:, :position].mean(1)
        if isinstance(position, Tensor):  # torch.jit.trace: a program for images of any size has no branch
            share = position.clamp(max=1) / 2
            before = x[:, :position].sum(1) / position.clamp(min=1)
            return share * before + (1 - share) * x[:, position + 1 :].mean(1)
        if isinstance(position, torch.SymInt):  # torch.export
            torch._check(position >= 1, lambda: "the image must have at least two patches")
        elif position == 0:  # one patch: nothing lies before the class token
            return x[:, 1:].mean(1)
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
        output_dict: bool = False,
    ) -> list | tuple[Tensor, list] | dict[str, Tensor | list]:
        """Outputs of chosen blocks, as timm's models return them.

        Args:
            x: images (B, in_chans, H, W).
            indices: blocks from 0, negative from the end; a number n means the last n; None means all.
            return_prefix_tokens: return each output as a pair with its class token (B, 1, C).
            norm: apply the last norm to every output.
            stop_early: skip the blocks after the last one of `indices`; the tokens are then those of that block.
            output_fmt: "NCHW" for maps (B, C, Gh, Gw), "NLC" for patch tokens (B, Gh * Gw, C).
            intermediates_only: return the outputs alone.
            output_dict: return a dict with "image_features" (unless intermediates_only), "image_intermediates" and, if
                return_prefix_tokens and the model has one, the class tokens as "image_intermediates_prefix".

        Returns:
            (tokens as `forward_features` returns them, outputs), or only the outputs, or the dict.

        Raises:
            ValueError: for an unknown output_fmt.
            AssertionError: for an index that is out of range (timm's).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r}: give 'NCHW' or 'NLC'")
        taken, last = feature_take_indices(len(self.blocks), indices)
        x, grid = self.embed(x)
        intermediates, prefixes = [], []
        outputs = self.block_outputs(x, self.orders(grid))
        for i, x in enumerate(islice(outputs, last + 1 if stop_early else None)):
            if i not in taken:
                continue
            tokens = self.norm(x) if norm else x
            patches = self.patch_tokens(tokens)
            if output_fmt == "NCHW":
                patches = patches.transpose(1, 2).unflatten(2, grid).contiguous()
            intermediates.append(patches)
            if return_prefix_tokens and self.cls_token_position is not None:
                position = cls_index(tokens.shape[1] - 1, self.cls_token_position)
                prefixes.append(tokens[:, position : position + 1])
        if output_dict:
            result = {} if intermediates_only else dict(image_features=self.norm(x))
            result["image_intermediates"] = intermediates
            return result | (dict(image_intermediates_prefix=prefixes) if prefixes else {})
        if prefixes:
            intermediates = list(zip(intermediates, prefixes, strict=True))
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
        """Patterns with which timm groups parameters into layers, for its layer-wise learning-rate decay.

        The layers are those of `layer_depth`: the last norm learns like the head, as in the reference code.
        """
        return dict(stem=r"^(?:patch_embed|pos_embed|cls_)", blocks=r"^blocks\.(\d+)")


CLASSIFIERS: dict[str, type[ARMClassifier]] = {"ARM": ARMClassifier}  # by encoder; another encoder's file adds its own
