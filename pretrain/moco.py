"""MoCo v3: two views of an image find each other among the images of all processes.

Legend: B images of a process, H, W height and width of a view, C channels of a projection.
"""

import copy
import math

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import HOOKS, MODELS
from torch import Tensor, nn

from arm_backbone.arm import trunk_class
from arm_backbone.classifier import CLASSIFIERS
from arm_backbone.ops.library import without_autocast

from .moco_heads import normalized, predictor, projector
from .positions import fix_positions


def contrastive_loss(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cross entropy of finding each query's key among the keys of all processes, times twice the temperature.

    Args:
        queries, keys: (B, C), of any length; no gradient flows to keys.
        temperature: divides the cosines.

    Returns:
        the mean over the queries of this process, a scalar.
    """
    with without_autocast(queries.device.type):
        keys = torch.cat(all_gather(normalized(keys.detach())))
        logits = normalized(queries) @ keys.T / temperature
        labels = torch.arange(len(queries), device=queries.device) + get_rank() * len(queries)
        return F.cross_entropy(logits, labels) * (2 * temperature)


def momentum_at(progress: float, start: float) -> float:
    """The momentum after a fraction `progress` of the training: half a cosine from `start` to 1."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2


@MODELS.register_module()
class MoCoPretrainer(BaseModel):
    """Trains an encoder so that the predictions from one view match the projections of the other.

    The keys come from an encoder of the same form, whose weights follow by momentum. The encoders are classifiers with
    a projector as head.

    Args:
        arch: size of the encoder, see `ARCHS` of `arm_backbone.arm` or `arm_backbone.vim`.
        img_size: pixels, one number or (height, width).
        patch_size: pixels.
        encoder: "ARM" or "Vim".
        scans: None for as many as in finetuning (ARM 4, Vim 2), or 1.
        cls_token: "middle", "tail" or None, as in `arm_backbone.arm.ARMTrunk`.
        global_pool: what the projector reads, "token" or one of `ARMClassifier`'s other poolings.
        hidden_dim: width of the heads.
        out_dim: C.
        temperature: of the loss.
        momentum: at the start; `MomentumHook` lets it rise to 1.
        freeze_patch_embed: keep the patch embedding at its random values.
        with_cp: activation checkpointing of the encoder, see `arm_backbone.arm.ARMTrunk`.
        data_preprocessor: configuration of the data preprocessor, which normalizes the views.

    Attributes:
        img_size: (height, width) of the views, in pixels.
        current_momentum: with which the next step updates the momentum encoder.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        encoder: str = "ARM",
        scans: int | None = None,
        cls_token: str | None = "middle",
        global_pool: str = "token",
        hidden_dim: int = 4096,
        out_dim: int = 256,
        temperature: float = 0.2,
        momentum: float = 0.99,
        freeze_patch_embed: bool = True,
        with_cp: bool | str = False,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor)
        kind = CLASSIFIERS[trunk_class(encoder).encoder_name]  # raises for another encoder
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: give a number above 0")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum}: give a number from 0 to 1")
        self.base_encoder = kind(
            arch,
            img_size,
            patch_size=patch_size,
            scans=kind.most_scans if scans is None else scans,
            cls_token=cls_token,
            num_classes=0,
            global_pool=global_pool,
            with_cp=with_cp,
        )
        self.base_encoder.head = projector(self.base_encoder.embed_dims, hidden_dim, out_dim)
        self.predictor = predictor(hidden_dim, out_dim)
        self.momentum_encoder = copy.deepcopy(self.base_encoder).requires_grad_(False)
        if freeze_patch_embed:
            self.base_encoder.patch_embed.requires_grad_(False)
        self.img_size = self.base_encoder.img_size
        self.temperature, self.momentum, self.current_momentum = temperature, momentum, momentum
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise what MoCo v3 initialises in its own way, and copy the encoder to the momentum encoder."""
        encoder = self.base_encoder
        fix_positions(encoder)
        nn.init.xavier_uniform_(encoder.patch_embed.proj.weight.view(encoder.embed_dims, -1))
        nn.init.zeros_(encoder.patch_embed.proj.bias)
        if encoder.cls_token_position is not None:
            nn.init.normal_(encoder.cls_token, std=1e-6)
        for module in encoder.head.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        self.momentum_encoder.load_state_dict(encoder.state_dict())

    @torch.no_grad()
    def update_momentum_encoder(self) -> None:
        """Move the momentum encoder's parameters towards the encoder's; parameters that are not trained stay equal."""
        m = self.current_momentum
        if m == 1:  # between two steps of accumulated gradients
            return
        for ours, theirs in zip(self.base_encoder.parameters(), self.momentum_encoder.parameters(), strict=True):
            if ours.requires_grad:
                theirs.mul_(m).add_(ours * (1 - m))

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"):
        """mmengine's interface. With mode "loss" the momentum encoder is updated before it computes the keys.

        Args:
            inputs: normalized, with mode "loss" views (B, 2, 3, H, W), else images (B, 3, H, W).

        Returns:
            with mode "loss" dict(loss=the sum of the losses of both views), else predictions (B, C).

        Raises:
            ValueError: for the loss of a single image.
        """
        if mode != "loss":
            return self.predictor(self.base_encoder(inputs))
        if len(inputs) * get_world_size() < 2:
            raise ValueError(
                "a batch of one image: MoCo contrasts the images of a batch with each other; set "
                "train_dataloader.batch_size to at least 2"
            )
        first, second = inputs.unbind(1)
        queries = [self.predictor(self.base_encoder(view)) for view in (first, second)]
        with torch.no_grad():
            self.update_momentum_encoder()
            keys = [self.momentum_encoder(view) for view in (first, second)]
        losses = (contrastive_loss(q, k, self.temperature) for q, k in zip(queries, reversed(keys), strict=True))
        return dict(loss=sum(losses))


@HOOKS.register_module()
class MomentumHook(Hook):
    """Sets the momentum of `MoCoPretrainer` before each iteration: half a cosine from its `momentum` to 1.

    With gradient accumulation the momentum encoder moves once per optimizer step, in its first iteration.
    """

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        momentum = momentum_at(runner.iter / runner.max_iters, model.momentum)
        begins = runner.iter % runner.optim_wrapper._accumulative_counts == 0  # no public name
        model.current_momentum = momentum if begins else 1.0
        runner.message_hub.update_scalar("train/momentum", momentum)
