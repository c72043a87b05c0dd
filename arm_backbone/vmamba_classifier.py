"""The VMamba image classifier, with the methods that timm expects of a hierarchical model.

Legend: B batch, H, W height and width of the last stage's map, C its channels.
"""

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .classifier import PoolError, reset_head
from .parameters import init_parameters
from .ss2d import NORM_EPS
from .vmamba import STRIDES, VMambaTrunk

POOLS = ("avg", "avgmax", "max", "")


class VMambaClassifier(VMambaTrunk):
    """Trunk, norm of each position, pooling and linear head; images of any size.

    Args:
        num_classes: 0 for features without a head.
        global_pool: over all positions "avg", "max", or "avgmax", the mean of both; "": no pooling.
        drop_rate: dropout before the head.

    The other arguments are as in `VMambaTrunk`.

    Raises:
        PoolError: for an unknown pooling.
    """

    output_fmt = "NHWC"  # of `forward_features`, for timm
    is_init = True  # an OpenMMLab model that contains this one does not call `init_weights`, which would reset it

    def __init__(
        self,
        arch: str | dict = "base",
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cp: bool | str = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory = dict(device=device, dtype=dtype)
        super().__init__(arch, in_chans=in_chans, drop_path_rate=drop_path_rate, with_cp=with_cp, **factory)
        self.num_features = self.head_hidden_size = self.widths[-1]
        self.feature_info = [
            dict(module=f"stages.{i}", num_chs=width, reduction=stride)
            for i, (width, stride) in enumerate(zip(self.widths, STRIDES, strict=True))
        ]
        self.norm = nn.LayerNorm(self.num_features, eps=NORM_EPS, **factory)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one, and the pooling unless `global_pool` is None.

        Raises:
            PoolError: for an unknown pooling.
        """
        global_pool = self.global_pool if global_pool is None else global_pool
        if global_pool not in POOLS:
            raise PoolError(f"global_pool={global_pool!r} is unknown; give one of {POOLS}")
        self.num_classes, self.global_pool = num_classes, global_pool
        example = self.stages[0].blocks[0].mixer.D
        factory = dict(device=example.device, dtype=example.dtype)
        self.head = nn.Linear(self.num_features, num_classes, **factory) if num_classes else nn.Identity()
        self.head.train(self.training)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the head."""
        reset_head(self.head, 0.02)

    def init_weights(self) -> None:
        """Initialise every parameter, for example after `to_empty` of a model built on the meta device."""
        init_parameters(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> the last stage's map (B, ceil(H / 32), ceil(W / 32), C) after the last norm."""
        for output in self.stage_outputs(images):
            x = output
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, H, W, C) -> logits (B, num_classes), or the pooled features if `pre_logits`."""
        x = self._pool(x)
        return x if pre_logits else self.head(self.head_drop(x))

    def _pool(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, C) by `global_pool`; unchanged if that is ""."""
        if self.global_pool == "avg":
            return x.mean((1, 2))
        if self.global_pool == "max":
            return x.amax((1, 2))
        return (x.mean((1, 2)) + x.amax((1, 2))) / 2 if self.global_pool else x

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of chosen stages, as timm's hierarchical models return them.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages from 0, negative from the end; a number n means the last n; None means all.
            norm: apply the last norm, which only the last stage's channels fit, to that stage's output.
            stop_early: skip the stages after the last one of `indices`; the map is then that stage's, without norm.
            output_fmt: "NCHW", the only form.
            intermediates_only: return the outputs alone.

        Returns:
            (map as `forward_features` returns it, outputs (B, C, H, W)), or only the outputs.

        Raises:
            ValueError: for another output_fmt.
            AssertionError: for an index that is out of range (timm's).
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: a hierarchical model has maps; give 'NCHW'")
        taken, last = feature_take_indices(len(self.stages), indices)
        intermediates, final = [], len(self.stages) - 1
        for i, output in enumerate(self.stage_outputs(x)):
            x = self.norm(output) if i == final and not (stop_early and last < final) else output
            if i in taken:
                intermediates.append((x if norm else output).permute(0, 3, 1, 2).contiguous())
            if stop_early and i == last:
                break
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last of `indices`, and then norm and head, which fit the last stage only.

        Args:
            prune_norm, prune_head: remove norm or head even if all stages stay.

        Returns:
            the indices, counted from 0.
        """
        taken, last = feature_take_indices(len(self.stages), indices)
        shorter = last + 1 < len(self.stages)
        self.stages = self.stages[: last + 1]
        self.stages[-1].downsample = None  # its result would not be used
        self.num_features = self.head_hidden_size = self.widths[last]
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute whole blocks in the backward pass, as timm's models do."""
        self.with_cp = "full" if enable else False

    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns with which timm groups parameters into layers, for its layer-wise learning-rate decay.

        The layers are those of `layer_depth`, or stages if `coarse`.
        """
        blocks = [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.downsample", (99,)),
            (r"^norm", (99999,)),
        ]
        return dict(stem=r"^stem", blocks=r"^stages\.(\d+)" if coarse else blocks)
