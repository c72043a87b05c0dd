"""Autoregressive pretraining of ARM (section 3.2) and STAR (section 3): read clusters in order, predict the next one.

Legend: B images, N images of a sequence, M clusters, P patches of a cluster, L encoder tokens, Lq predicted tokens,
C encoder and E decoder channels.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from arm_backbone.arm import ARMTrunk
from arm_backbone.ops import ScanOrders
from arm_backbone.pos_embed import sincos_pos_embed

from .clusters import cluster_order, cluster_patches
from .decoder import Decoder, skip_blocks
from .sequence import SEPARATOR, SEPARATOR_TYPES, Sequence, image_pattern, separator_values
from .targets import TARGETS, normalised_pixels, patch_statistics, patchify, unpatchify


@MODELS.register_module()
class ARMPretrainer(BaseModel):
    """One causal scan over the clusters of one image, or several; each next one is predicted from those before it.

    Where STAR's paper is silent: batch counts images; a separator's target is its own constant, the same in all
    pixels of a token (a learned embedding's is 0), not normalised; the last cluster of a sequence predicts the
    separator of the image that would follow; without separators it predicts the next image's first cluster; the
    separators' position embeddings in encoder and decoder are learned.

    Args:
        arch: size of the encoder, see `arm_backbone.arm.ARCHS`.
        img_size: pixels, one number or (height, width); must divide into clusters.
        patch_size: pixels; 1 with a cluster_side of 1 predicts pixel by pixel (iGPT).
        cluster_side: patches along one side of a cluster (4: 64 pixels).
        order: of the clusters, see `arm_pretrain.clusters.ORDERS`.
        target: "normalised_pixels", "pixels", or a tokenizer (`arm_pretrain.tokenizers`) whose tokens are predicted.
        decoder_dim, decoder_depth: width (a multiple of 64) and number of decoder blocks.
        images_per_sequence: N; the batch must divide by it (STAR Table 4).
        separator: dict of `type` ("none", "token", "cluster"), `value` ("zeros", "ones", "embedding", "identity") and
            `position` ("SC", "CS", "SCS", "CSC"); None for none.
        with_cp: activation checkpointing of the encoder, see `arm_backbone.arm.ARMTrunk`.
        data_preprocessor: mmengine's, turns raw images into normalised ones.

    Raises:
        ValueError: if the image does not divide into clusters, or for an unknown order, target or separator.
    """

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 192,
        patch_size: int = 16,
        cluster_side: int = 4,
        order: str = "row_forward",
        target: str | dict = "normalised_pixels",
        decoder_dim: int = 512,
        decoder_depth: int = 4,
        images_per_sequence: int = 1,
        separator: dict | None = None,
        with_cp: bool | str = False,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor)
        self.encoder = ARMTrunk(
            arch, img_size, patch_size=patch_size, patch_stride=patch_size, scans=1, with_cp=with_cp
        )
        dim = self.encoder.embed_dims
        height, width = self.encoder.grid_size
        if (height * patch_size, width * patch_size) != self.encoder.img_size:
            raise ValueError(f"img_size={img_size!r} does not divide into patches of {patch_size} pixels")
        self.register_buffer("patches", cluster_patches(height, width, cluster_side), persistent=False)  # (M, P)
        self.cluster_side, self.clusters = cluster_side, (height // cluster_side, width // cluster_side)
        self.order = order
        cluster_order(*self.clusters, order)  # refuses an unknown one

        self._tokenizer = ()
        out_dim = 3 * patch_size**2
        if isinstance(target, dict):
            self._tokenizer = (MODELS.build(target),)  # in a tuple it is no submodule: neither trained nor saved
            out_dim = self._tokenizer[0].vocab_size
        elif target not in TARGETS:
            raise ValueError(f"target={target!r} is unknown; give one of {', '.join(TARGETS)}, or a tokenizer")
        self.target = target
        self.skip_blocks = skip_blocks(self.encoder.num_layers, decoder_depth)
        self.decoder = Decoder(dim, decoder_dim, decoder_depth, out_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))

        # fixed tables, kept with the weights: the authors' differ from ours in the last bit
        self.encoder.pos_embed.requires_grad_(False)
        self.register_buffer("decoder_pos_embed", torch.empty(1, height * width, decoder_dim))
        self._make_separator(**separator or {})
        self.reset_parameters()
        self.images_per_sequence = images_per_sequence
        self.sequences = {images: self._sequence(images) for images in {1, images_per_sequence}}

    def _make_separator(self, type: str = "none", value: str = "identity", position: str = "SC") -> None:  # noqa: A002
        if type not in SEPARATOR_TYPES:
            raise ValueError(f"separator type {type!r} is unknown; give one of {', '.join(SEPARATOR_TYPES)}")
        self.pattern = image_pattern(len(self.patches), self.clusters[1], None if type == "none" else position)
        if type == "none":
            return
        if self._tokenizer:
            raise ValueError("a separator has no token of a tokenizer: predict pixels, or leave separators out")
        tokens = 1 if type == "token" else self.patches.shape[1]
        dim, decoder_dim = self.encoder.embed_dims, self.mask_token.shape[2]
        self.separator_value = value
        if value == "embedding":
            self.separator = nn.Parameter(torch.empty(1, tokens, dim))
        else:
            self.register_buffer("separator", torch.empty(1, tokens, dim), persistent=False)
        target = torch.empty(1, tokens, self.decoder.head.out_features)
        self.register_buffer("separator_target", target, persistent=False)
        self.separator_pos_embed = nn.Parameter(torch.empty(1, 1, dim))
        self.separator_query = nn.Parameter(torch.empty(1, 1, decoder_dim))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the parameters and tables that no submodule holds, and the encoder's fixed position table."""
        height, width = self.encoder.grid_size
        self.patches.copy_(cluster_patches(height, width, self.cluster_side))
        self.encoder.pos_embed.copy_(sincos_pos_embed(height, width, self.encoder.embed_dims))
        self.decoder_pos_embed.copy_(sincos_pos_embed(height, width, self.mask_token.shape[2]).flatten(1, 2))
        nn.init.normal_(self.mask_token, std=0.02)
        if SEPARATOR not in self.pattern:
            return
        for table in (self.separator, self.separator_target):
            table.copy_(separator_values(self.separator_value, *table.shape[1:]))
        if self.separator_value == "embedding":
            nn.init.normal_(self.separator, std=0.02)
        nn.init.normal_(self.separator_pos_embed, std=0.02)
        nn.init.normal_(self.separator_query, std=0.02)

    @property
    def predicts_pixels(self) -> bool:
        """Not tokens."""
        return not self._tokenizer

    def sharded_parts(self) -> list[nn.Module]:
        """Modules that fully sharded training shards one by one."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def forward_methods(self) -> tuple[str, ...]:
        """Methods besides `forward` that compute with the weights, for fully sharded training."""
        return ("losses_by_position", "reconstruct", "generate")

    def _sequence(self, images: int) -> Sequence:
        separator = getattr(self, "separator", None)
        return Sequence(images, self.pattern, self.patches.shape[1], 0 if separator is None else separator.shape[1])

    def draw_patches(self) -> Tensor:
        """(M, P) patch numbers of the clusters in the order of a sequence; drawn anew if that is random."""
        return self.patches[cluster_order(*self.clusters, self.order).to(self.patches.device)]

    def _grouped(self, tokens: Tensor, patches: Tensor, images: int) -> Tensor:
        """(B, Gh * Gw, C) in raster order -> (B / N, N, M, P, C) in the order of a sequence."""
        if len(tokens) % images:
            raise ValueError(f"a batch of {len(tokens)} images does not divide into sequences of {images}")
        return tokens[:, patches.flatten()].unflatten(0, (-1, images)).unflatten(2, patches.shape)

    def encode(self, images: Tensor, patches: Tensor | None = None, per_sequence: int = 1) -> list[Tensor]:
        """(B, 3, H, W) -> the skip features, each (B / N, L, C)."""
        self._check_size(images)
        patches = self.draw_patches() if patches is None else patches
        x = (self.encoder.patch_embed(images) + self.encoder.pos_embed).flatten(1, 2)
        clusters = self._grouped(x, patches, per_sequence)
        separator = None
        if SEPARATOR in self.pattern:
            separator = (self.separator + self.separator_pos_embed).to(x.dtype)
        sequence = self.sequences[per_sequence]
        x = sequence.assemble(sequence.inputs, clusters, separator)
        orders = ScanOrders.trusted(torch.arange(x.shape[1], device=x.device).unsqueeze(0))
        outputs = list(self.encoder.block_outputs(x, orders))
        return [outputs[i] for i in self.skip_blocks]

    def predict_clusters(self, images: Tensor, patches: Tensor | None = None, per_sequence: int = 1) -> Tensor:
        """(B, 3, H, W) -> (B / N, Lq, values of a patch or tokenizer's vocabulary), in the order of the targets.

        Args:
            patches: from `draw_patches`.
            per_sequence: N, 1 or that of training.
        """
        patches = self.draw_patches() if patches is None else patches
        skips = self.encode(images, patches, per_sequence)
        sequence = self.sequences[per_sequence]
        places = self.decoder_pos_embed[:, patches.flatten()].unflatten(1, patches.shape)  # (1, M, P, E)
        separator = None
        if SEPARATOR in self.pattern:
            separator = (self.mask_token + self.separator_query).expand(-1, self.separator.shape[1], -1)
        query = sequence.assemble(sequence.targets, (self.mask_token + places).unsqueeze(1), separator)
        return self.decoder(query.expand(len(skips[0]), -1, -1), skips, sequence)

    def target_patches(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """(B, L, 3 * patch_size ** 2), the pixels of all clusters but the first in the order of a sequence."""
        patches = self.draw_patches() if patches is None else patches
        return patchify(images, self.encoder.patch_size)[:, patches[1:].flatten()]

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"):
        """Normalised images (B, 3, H, W).

        Returns:
            mode "loss": dict(loss=mean squared error, or cross entropy of tokens); "tensor": the predictions;
            "predict": the images with all clusters but the first replaced by their prediction.
        """
        if mode == "predict":
            return self.reconstruct(inputs)
        patches = self.draw_patches()
        predictions = self.predict_clusters(inputs, patches, self.images_per_sequence)
        return predictions if mode == "tensor" else dict(loss=self.loss(inputs, predictions, patches))

    def loss(self, images: Tensor, predictions: Tensor, patches: Tensor) -> Tensor:
        """Of the predictions for sequences of `images_per_sequence`, a scalar."""
        return self._token_losses(images, predictions, patches).mean()

    def _token_losses(self, images: Tensor, predictions: Tensor, patches: Tensor) -> Tensor:
        """(B / N, Lq), of each predicted token the mean squared error of its values, or the cross entropy."""
        if self._tokenizer:
            tokens = self._tokenizer[0].to(images.device)(images).unsqueeze(2)  # (B, Gh * Gw, 1)
        else:
            tokens = patchify(images, self.encoder.patch_size)
            tokens = normalised_pixels(tokens) if self.target == "normalised_pixels" else tokens
        clusters = self._grouped(tokens, patches, self.images_per_sequence)
        separator = self.separator_target.to(tokens) if SEPARATOR in self.pattern else None
        sequence = self.sequences[self.images_per_sequence]
        target = sequence.assemble(sequence.targets, clusters, separator)
        if self._tokenizer:
            losses = F.cross_entropy(predictions.flatten(0, 1).float(), target.flatten(), reduction="none")
            return losses.view(predictions.shape[:2])
        return (predictions.to(target.dtype) - target).square().mean(2)

    @torch.no_grad()
    def losses_by_position(self, images: Tensor) -> dict[str, float]:
        """Mean loss of the predicted clusters by their place in the order of an image, "cluster_2" the second, and of
        the separators.

        Args:
            images: normalised (B, 3, H, W), whole sequences.
        """
        patches = self.draw_patches()
        predictions = self.predict_clusters(images, patches, self.images_per_sequence)
        sequence = self.sequences[self.images_per_sequence]
        losses = self._token_losses(images, predictions, patches).split(sequence.query_lengths, 1)
        by_position: dict[str, list[float]] = {}
        for element, values in zip(sequence.targets, losses, strict=True):
            name = "separator" if element.step == SEPARATOR else f"cluster_{element.step + 1}"
            by_position.setdefault(name, []).append(float(values.mean()))
        return {name: sum(values) / len(values) for name, values in by_position.items()}

    @torch.no_grad()
    def reconstruct(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """Normalised images -> the same with every predicted cluster (with separators all, else all but the first)
        in place of the true one, each predicted from the true ones before it.

        Normalised pixels are put back with the mean and deviation of the true patch.

        Args:
            patches: from `draw_patches`.

        Raises:
            ValueError: if the model predicts tokens, of which no image can be made here.
        """
        return self._predicted(images, images, self.draw_patches() if patches is None else patches)

    @torch.no_grad()
    def generate(self, images: Tensor, given: int, patches: Tensor | None = None) -> Tensor:
        """As `reconstruct`, but only the first `given` clusters are true: each next one is predicted from these and
        from its predecessors' predictions.

        Raises:
            ValueError: as `reconstruct`, or if `given` is not from 1 (from 0 with separators) to all clusters.
        """
        patches = self.draw_patches() if patches is None else patches
        least = min(self._predicted_steps())
        if not least <= given <= len(patches):
            raise ValueError(f"given={given}: give {least} to {len(patches)} clusters")
        current = images.clone()
        for step in range(given, len(patches)):
            predicted = self._predicted(current, images, patches)
            pixels, new = (patchify(x, self.encoder.patch_size) for x in (current, predicted))
            pixels[:, patches[step]] = new[:, patches[step]]
            current = unpatchify(pixels, self.encoder.patch_size, self.encoder.grid_size)
        return current

    def _predicted_steps(self) -> list[int]:
        """Steps, in the order of a sequence, of an image's clusters that are predicted."""
        return [e.step for e in self.sequences[1].targets if e.image == 0 and e.step != SEPARATOR]

    def _predicted(self, past: Tensor, truth: Tensor, patches: Tensor) -> Tensor:
        """All predicted clusters from those of `past` before them, put back with the statistics of `truth`."""
        if self._tokenizer:
            raise ValueError("this model predicts tokens, not pixels: there is no image to show")
        predictions = self.predict_clusters(past, patches)[:, self.sequences[1].of_image(0).to(past.device)]
        where = patches[self._predicted_steps()].flatten()
        pixels = patchify(truth, self.encoder.patch_size)
        if self.target == "normalised_pixels":
            mean, deviation = patch_statistics(pixels[:, where])
            predictions = predictions.to(truth.dtype) * deviation + mean
        pixels[:, where] = predictions.to(truth.dtype)
        return unpatchify(pixels, self.encoder.patch_size, self.encoder.grid_size)

    def _check_size(self, images: Tensor) -> None:
        if tuple(images.shape[2:]) != self.encoder.img_size:
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels in a model for {self.encoder.img_size}: "
                "set img_size of model and data alike"
            )
