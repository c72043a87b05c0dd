"""AIM (first version), the autoregressive vision transformer of ARM's Table 10, on timm's vision transformer.

Legend: B batch, L tokens, C channels, Gh, Gw grid height and width in tokens.
"""

import logging
import re
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Attention, PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .checkpoint.load import require_match
from .pos_embed import sincos_pos_embed

_logger = logging.getLogger(__name__)

NORM_EPS = 1e-6
AVERAGED = 6  # blocks whose outputs are averaged
# patterns in the names of AIM's files -> what our names have there
_NAMES = (
    (r"^preprocessor\.patchifier\.", "patch_embed."),
    (r"^trunk\.post_trunk_norm\.", "norm."),
    (r"^trunk\.blocks\.(\d+)\.norm_(\d)\.", r"blocks.\1.norm\2."),
    (r"^trunk\.blocks\.", "blocks."),
)


class CausalAttention(Attention):
    """timm's attention, in which a token sees itself and the tokens before it unless a mask says otherwise."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return super().forward(x, attn_mask, is_causal=is_causal or attn_mask is None)


def prefix_mask(lengths: Tensor, tokens: int) -> Tensor:
    """The mask of AIM's pretraining: token i sees token j if j <= i or j lies in the prefix of its image.

    Args:
        lengths: of the prefixes (B,); 1 is plain causal attention.
        tokens: L.

    Returns:
        (B, 1, L, L) bool, True where token i (third dimension) sees token j; the argument `attn_mask` of `AIM`.
    """
    position = torch.arange(tokens, device=lengths.device)
    causal = position <= position[:, None]  # (L, L)
    inside = position < lengths[:, None]  # (B, L)
    return causal | inside[:, None, None]


class AttentiveHead(nn.Module):
    """Classifier whose learnt query attends to all tokens; tokens are normalized by a BatchNorm without parameters.

    Args:
        dim: C.
        heads: of the attention.
        num_classes: of the output.
    """

    def __init__(self, dim: int, heads: int, num_classes: int, device=None, dtype=None) -> None:
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        self.heads = heads
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, **factory))
        self.bn = nn.BatchNorm1d(dim, affine=False, eps=NORM_EPS, **factory)
        self.k = nn.Linear(dim, dim, bias=False, **factory)
        self.v = nn.Linear(dim, dim, bias=False, **factory)
        self.linear = nn.Linear(dim, num_classes, bias=False, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the query; the layers initialise themselves."""
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, L, C) -> logits (B, num_classes), or what the query read (B, C) if `pre_logits`."""
        x = self.bn(x.transpose(1, 2)).transpose(1, 2)
        q = self.cls_token.expand(x.shape[0], -1, -1)  # with len() an exported program would hold for one batch size
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, self.k(x), self.v(x)))
        x = F.scaled_dot_product_attention(q.to(k.dtype), k, v).transpose(1, 2).flatten(1)
        return x if pre_logits else self.linear(x)


class AIM(VisionTransformer):
    """Patch embedding with a norm, fixed sin-cos positions, blocks, mean over the outputs of several blocks, head.

    Images of any size that is a multiple of the patch size, 14: the table is computed for their grid.

    Args:
        causal: a token sees itself and the tokens before it (row by row); else all tokens, as in the released models.
        probe_layers: blocks (from 0) whose outputs are averaged for the head; None: the last six.
        num_classes: 0 for features without a head.
        global_pool: as in `reset_classifier`.

    The other arguments are those of timm's vision transformer.

    Raises:
        ValueError: for probe_layers that the model does not have, another pooling, or `dynamic_img_size=False`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        causal: bool = False,
        probe_layers: tuple[int, ...] | None = None,
        img_size: int | tuple[int, int] = 224,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dynamic_img_size: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **arguments,
    ) -> None:
        if not dynamic_img_size:
            raise ValueError("dynamic_img_size=False: AIM takes images of many sizes; leave the argument out")
        norm_layer = partial(nn.LayerNorm, eps=NORM_EPS)
        super().__init__(
            img_size=img_size,
            patch_size=14,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            qkv_bias=False,
            proj_bias=False,
            class_token=False,
            pos_embed="none",
            dynamic_img_size=True,
            norm_layer=norm_layer,
            embed_layer=partial(PatchEmbed, norm_layer=norm_layer),
            attn_layer=CausalAttention if causal else Attention,
            num_classes=0,
            global_pool="avg",
            fc_norm=False,
            weight_init="skip",
            device=device,
            dtype=dtype,
            **arguments,
        )
        self.probe_layers = tuple(range(depth)[-AVERAGED:]) if probe_layers is None else tuple(probe_layers)
        if not self.probe_layers or not set(self.probe_layers) <= set(range(depth)):
            raise ValueError(f"probe_layers={probe_layers!r}: give block numbers from 0 to {depth - 1}")
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(embed_dim, -1))
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one; a head pools by attention.

        With a head the last norm, and the blocks after the last averaged one, get no gradient, so they are frozen.

        Args:
            num_classes: 0 for no head.
            global_pool: of the features without a head, "avg" or "" (none); None keeps it.

        Raises:
            ValueError: for another pooling.
        """
        if global_pool not in (None, "avg", ""):
            raise ValueError(f"global_pool={global_pool!r}: AIM's head pools by attention; leave the argument out")
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        unused = (self.norm, *self.blocks[max(self.probe_layers) + 1 :])
        for module in unused:
            module.requires_grad_(not num_classes)
        if not num_classes:
            self.head = nn.Identity()
            return
        example, heads = self.patch_embed.proj.weight, self.blocks[0].attn.num_heads
        self.head = AttentiveHead(self.embed_dim, heads, num_classes, example.device, example.dtype)
        self.head.train(self.training)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """(B, Gh, Gw, C) -> tokens (B, L, C) with positions."""
        table = sincos_pos_embed(*x.shape[1:], dtype=x.dtype, device=x.device)
        return (x + table).flatten(1, 2)

    def no_weight_decay(self) -> set[str]:
        return {"head.cls_token"}

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, in_chans, H, W) -> tokens (B, L, C), the mean over `probe_layers`, before any norm.

        Args:
            attn_mask: bool, True where a token (third dimension) sees another, see `prefix_mask`.
        """
        outputs = self.forward_intermediates(
            x,
            indices=list(self.probe_layers),
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
            attn_mask=attn_mask,
        )
        return torch.stack(outputs).mean(0)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, L, C) -> logits (B, num_classes); without a head, or if `pre_logits`, pooled features (B, C).

        Without a head and with `global_pool` "" they are returned as they are.
        """
        if not self.num_classes:
            return x.mean(1) if self.global_pool else x
        return self.head(self.head_drop(x), pre_logits)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return self.forward_head(self.forward_features(x, attn_mask))


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """AIM's tensors (backbone, head or both) under our names, without the mask that a pretraining file holds."""
    renamed = {}
    for name, tensor in state.items():
        if not name.endswith(".attn_mask"):
            new = next((re.sub(old, new, name) for old, new in _NAMES if re.match(old, name)), name)
            renamed[new] = tensor
    return renamed


# ------------------------------------------------------------------------------------------- in timm's registry


def checkpoint_filter_fn(checkpoint: dict[str, Tensor], model: AIM) -> dict[str, Tensor]:
    """Fit a file of AIM's to `model`; timm calls this before loading.

    A head that the file lacks, or has for other classes, keeps its initial values, with a warning.

    Returns:
        a complete state dict of `model`.

    Raises:
        CheckpointError: if another tensor is missing, unknown or of another shape.
    """
    state, target = from_official(checkpoint), model.state_dict()
    heads = {name for name in target if name.startswith("head.")}
    new = {name for name in heads if name not in state or state[name].shape != target[name].shape}
    given = {name: tensor for name, tensor in state.items() if not name.startswith("head.") or name in heads - new}
    adapted = set() if model.patch_embed.proj.in_channels == 3 else {"patch_embed.proj.weight"}  # by timm, afterwards
    expected, checked = ({name: x for name, x in part.items() if name not in adapted} for part in (target, given))
    require_match(expected, checked, "the checkpoint", dict.fromkeys(new))
    if new:
        _logger.warning("initial values kept, the checkpoint has none that fit: %s", ", ".join(sorted(new)))
    elif heads:  # else timm drops a head for another number of classes than the default
        model.pretrained_cfg["num_classes"] = model.num_classes
    return target | given


def _cfg() -> dict:
    return dict(
        num_classes=1000,
        input_size=(3, 224, 224),
        crop_pct=0.875,
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        first_conv="patch_embed.proj",
        classifier="head.linear",
    )


default_cfgs = generate_default_cfgs({f"aim_{size}_patch14_224": _cfg() for size in ("600m", "1b", "3b", "7b")})


def _create(name: str, pretrained: bool, **kwargs) -> AIM:
    return build_model_with_cfg(
        AIM,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter"),
        **kwargs,
    )


@register_model
def aim_600m_patch14_224(pretrained: bool = False, **kwargs) -> AIM:
    """AIM-600M."""
    return _create("aim_600m_patch14_224", pretrained, **dict(embed_dim=1536, depth=24, num_heads=12) | kwargs)


@register_model
def aim_1b_patch14_224(pretrained: bool = False, **kwargs) -> AIM:
    """AIM-1B."""
    return _create("aim_1b_patch14_224", pretrained, **dict(embed_dim=2048, depth=24, num_heads=16) | kwargs)


@register_model
def aim_3b_patch14_224(pretrained: bool = False, **kwargs) -> AIM:
    """AIM-3B."""
    return _create("aim_3b_patch14_224", pretrained, **dict(embed_dim=3072, depth=24, num_heads=24) | kwargs)


@register_model
def aim_7b_patch14_224(pretrained: bool = False, **kwargs) -> AIM:
    """AIM-7B."""
    return _create("aim_7b_patch14_224", pretrained, **dict(embed_dim=4096, depth=32, num_heads=32) | kwargs)
