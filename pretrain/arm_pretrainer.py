"""Autoregressive pretraining of ARM (section 3.2) and STAR (section 3): read clusters in order, predict the next one.

Legend: B images, N images of a sequence, M clusters of an image, P patches of a cluster, Gh, Gw grid height and width
in patches, L encoder tokens, Lq predicted tokens, C encoder channels, E decoder channels.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from arm_backbone.arm import trunk_class
from arm_backbone.ops import ScanOrders
from arm_backbone.pos_embed import sincos_pos_embed

from .clusters import cluster_order, cluster_patches
from .decoder import Decoder, skip_blocks
from .protocol import Reconstruction
from .separators import SEPARATOR, SeparatorOptions, image_pattern, separator_values
from .sequence import Sequence
from .targets import normalized_pixels, patch_statistics, patchify, target_name, unpatchify


@MODELS.register_module()
class ARMPretrainer(BaseModel):
    """Reads the clusters of one or several images with one causal scan, and predicts each cluster from those before it.

    Choices where STAR's paper gives no details:

    * The batch size counts images, not sequences.
    * The target of a constant separator is its constant, for every pixel of a token and not normalized; the target of a
      learned separator is 0.
    * If a sequence starts with a separator, its last cluster predicts the separator of the image that would follow.
      Without separators, the last cluster of an image predicts the first cluster of the next image.
    * The position embeddings of separators are learned, in the encoder and in the decoder.

    Implements `arm_pretrain.protocol.Reconstructs` and `arm_toolkit.engine.fsdp.Shardable`.

    Args:
        arch: size of the encoder, see `arm_backbone.arm.ARCHS` and `arm_backbone.vim.ARCHS`.
        img_size: pixels, one number or (height, width); a multiple of the cluster size.
        patch_size: pixels; 1 with `cluster_side=1` predicts pixel by pixel (iGPT).
        cluster_side: side of a cluster in patches (4: 64 pixels).
        order: of the clusters, see `arm_pretrain.clusters.ORDERS`.
        target: "normalized_pixels", the pixels of a patch, normalized per patch (MAE's `norm_pix_loss`; the former
            spelling "normalised_pixels" is accepted); "pixels", without this normalization; or the configuration of a
            tokenizer (`arm_pretrain.tokenizers`), whose tokens are predicted.
        decoder_dim: E, a multiple of 64.
        decoder_depth: number of decoder blocks.
        images_per_sequence: N; the batch size must be a multiple of it (STAR Table 4).
        separator: dict of `type`, `value` and `position`, see `arm_pretrain.separators`; None for no separators.
        with_cp: activation checkpointing of the encoder, see `arm_backbone.arm.ARMTrunk`.
        data_preprocessor: configuration of mmengine's data preprocessor, which normalizes the images.
        encoder: "ARM", or another encoder with ARM's trunk ("Vim"), which then scans once as well.

    Raises:
        ValueError: if the image does not divide into clusters, or for an unknown encoder, order, target or separator.
    """

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 192,
        patch_size: int = 16,
        cluster_side: int = 4,
        order: str = "row_forward",
        target: str | dict = "normalized_pixels",
        decoder_dim: int = 512,
        decoder_depth: int = 4,
        images_per_sequence: int = 1,
        separator: dict | None = None,
        with_cp: bool | str = False,
        data_preprocessor: dict | None = None,
        encoder: str = "ARM",
    ) -> None:
        super().__init__(data_preprocessor)
        self.encoder = trunk_class(encoder)(
            arch, img_size, patch_size=patch_size, patch_stride=patch_size, scans=1, with_cp=with_cp
        )
        dim = self.encoder.embed_dims
        height, width = self.encoder.grid_size
        if (height * patch_size, width * patch_size) != self.encoder.img_size:
            raise ValueError(f"img_size={img_size!r} does not divide into patches of {patch_size} pixels")
        self.register_buffer("patches", cluster_patches(height, width, cluster_side), persistent=False)  # (M, P)
        self.cluster_side, self.clusters = cluster_side, (height // cluster_side, width // cluster_side)
        self.order = order
        cluster_order(*self.clusters, order)  # raises for an unknown order

        self.tokenizer: nn.Module | None = None
        out_dim = 3 * patch_size**2
        if isinstance(target, dict):
            # bypass nn.Module, so that the tokenizer is not a submodule and is neither trained nor saved with the model
            object.__setattr__(self, "tokenizer", MODELS.build(target))
            out_dim = self.tokenizer.vocab_size
        self.target = target if isinstance(target, dict) else target_name(target)
        self.skip_blocks = skip_blocks(self.encoder.num_layers, decoder_depth)
        self.decoder = Decoder(dim, decoder_dim, decoder_depth, out_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))

        # fixed tables, saved with the weights because the authors' tables differ from ours in the last bit
        self.encoder.pos_embed.requires_grad_(False)
        self.register_buffer("decoder_pos_embed", torch.empty(1, height * width, decoder_dim))
        self._add_separator(SeparatorOptions(**separator or {}))
        self.reset_parameters()
        self.images_per_sequence = images_per_sequence
        self.sequences = {images: self._sequence(images) for images in {1, images_per_sequence}}

    def _add_separator(self, options: SeparatorOptions) -> None:
        is_used = options.type != "none"
        self.pattern = image_pattern(len(self.patches), self.clusters[1], options.position if is_used else None)
        if not is_used:
            return
        if self.tokenizer is not None:
            raise ValueError("separators are not in a tokenizer's vocabulary; predict pixels, or use separator=None")
        tokens = 1 if options.type == "token" else self.patches.shape[1]
        dim, decoder_dim = self.encoder.embed_dims, self.mask_token.shape[2]
        self.separator_value = options.value
        if options.value == "embedding":
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
        """Whether the targets are pixels rather than a tokenizer's tokens."""
        return self.tokenizer is None

    @property
    def units_per_image(self) -> int:
        """M, the number of clusters."""
        return len(self.patches)

    def sharded_parts(self) -> list[nn.Module]:
        """Modules that fully sharded training shards individually."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def forward_methods(self) -> tuple[str, ...]:
        """Methods besides `forward` that compute with the weights, for fully sharded training."""
        return ("losses_by_position", "reconstruct")

    def _sequence(self, images: int) -> Sequence:
        separator = getattr(self, "separator", None)
        return Sequence(images, self.pattern, self.patches.shape[1], 0 if separator is None else separator.shape[1])

    def draw_patches(self) -> Tensor:
        """(M, P) raster indices of each cluster's patches, in the order of prediction; "random" draws at each call."""
        return self.patches[cluster_order(*self.clusters, self.order).to(self.patches.device)]

    def _grouped(self, tokens: Tensor, patches: Tensor, images: int) -> Tensor:
        """(B, Gh * Gw, C) in raster order -> (B / N, N, M, P, C) in the order of `patches`."""
        if len(tokens) % images:
            raise ValueError(
                f"a batch of {len(tokens)} images does not divide into sequences of {images}; "
                "make batch_size a multiple of images_per_sequence"
            )
        return tokens[:, patches.flatten()].unflatten(0, (-1, images)).unflatten(2, patches.shape)

    def encode(self, images: Tensor, patches: Tensor | None = None, per_sequence: int = 1) -> list[Tensor]:
        """Images (B, 3, H, W) -> the skip features, one (B / N, L, C) for each decoder block.

        Args:
            patches: from `draw_patches`, drawn here if None.
            per_sequence: N, either 1 or `images_per_sequence`.
        """
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
        """Predictions for all targets of the sequences.

        Args:
            images: normalized (B, 3, H, W).
            patches: from `draw_patches`, drawn here if None.
            per_sequence: N, either 1 or `images_per_sequence`.

        Returns:
            (B / N, Lq, values per patch, or size of the tokenizer's vocabulary)
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
        """(B, (M - 1) * P, 3 * patch_size ** 2), pixels of all clusters but the first, in the order of prediction."""
        patches = self.draw_patches() if patches is None else patches
        return patchify(images, self.encoder.patch_size)[:, patches[1:].flatten()]

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"):
        """mmengine's interface.

        Args:
            inputs: normalized images (B, 3, H, W).

        Returns:
            with mode "loss" dict(loss=mean squared error, or cross entropy of tokens), with "tensor" the predictions of
            `predict_clusters`, with "predict" the images of `teacher_forced`.
        """
        if mode == "predict":
            return self.teacher_forced(inputs)
        patches = self.draw_patches()
        predictions = self.predict_clusters(inputs, patches, self.images_per_sequence)
        return predictions if mode == "tensor" else dict(loss=self.loss(inputs, predictions, patches))

    def loss(self, images: Tensor, predictions: Tensor, patches: Tensor) -> Tensor:
        """The mean loss, a scalar, of predictions for sequences of `images_per_sequence` images."""
        return self._token_losses(images, predictions, patches).mean()

    def _token_losses(self, images: Tensor, predictions: Tensor, patches: Tensor) -> Tensor:
        """(B / N, Lq), the mean squared error or the cross entropy of each predicted token."""
        if self.tokenizer is not None:
            tokens = self.tokenizer.to(images.device)(images).unsqueeze(2)  # (B, Gh * Gw, 1)
        else:
            tokens = patchify(images, self.encoder.patch_size)
            tokens = normalized_pixels(tokens) if self.target == "normalized_pixels" else tokens
        clusters = self._grouped(tokens, patches, self.images_per_sequence)
        separator = self.separator_target.to(tokens) if SEPARATOR in self.pattern else None
        sequence = self.sequences[self.images_per_sequence]
        target = sequence.assemble(sequence.targets, clusters, separator)
        if self.tokenizer is not None:
            losses = F.cross_entropy(predictions.flatten(0, 1).float(), target.flatten(), reduction="none")
            return losses.view(predictions.shape[:2])
        return (predictions.to(target.dtype) - target).square().mean(2)

    @torch.no_grad()
    def losses_by_position(self, images: Tensor) -> dict[str, float]:
        """Mean loss of each predicted cluster and of the separators.

        Args:
            images: normalized (B, 3, H, W), B a multiple of `images_per_sequence`.

        Returns:
            dict of "cluster_K" (the K-th cluster in the order of prediction, counted from 1) and "separator" -> loss.
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
    def reconstruct(self, images: Tensor, given: int) -> Reconstruction:
        """Predict images from the true past, and free-running from the first `given` clusters, in one cluster order.

        Raises:
            ValueError: if the model predicts tokens, or `given` is out of range.
        """
        patches = self.draw_patches()
        columns = {
            "predicted from the true past": self.teacher_forced(images, patches),
            f"free-running from {given} of {len(patches)}": self.free_running(images, given, patches),
        }
        is_normalized = self.target == "normalized_pixels"
        return Reconstruction(
            columns, "each predicted patch takes its mean and deviation from the true one" if is_normalized else ""
        )

    @torch.no_grad()
    def teacher_forced(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """Images in which each cluster is replaced by its prediction from the true clusters before it.

        All clusters are predicted if the sequence starts with a separator, otherwise all but the first. Predictions of
        normalized pixels are rescaled with the mean and deviation of the true patch.

        Args:
            images: normalized (B, 3, H, W).
            patches: from `draw_patches`, drawn here if None.

        Raises:
            ValueError: if the model predicts tokens.
        """
        return self._predicted(images, images, self.draw_patches() if patches is None else patches)

    @torch.no_grad()
    def free_running(self, images: Tensor, given: int, patches: Tensor | None = None) -> Tensor:
        """Like `teacher_forced`, but only the first `given` clusters are true; later ones follow from predictions.

        Raises:
            ValueError: if the model predicts tokens, or unless 1 <= `given` <= M (0 is allowed if the sequence starts
                with a separator).
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
        """Positions, in the order of prediction, of the clusters that are predicted."""
        return [e.step for e in self.sequences[1].targets if e.image == 0 and e.step != SEPARATOR]

    def _predicted(self, past: Tensor, truth: Tensor, patches: Tensor) -> Tensor:
        """`truth` with every predicted cluster replaced by its prediction from the preceding clusters of `past`."""
        if self.tokenizer is not None:
            raise ValueError("the model predicts tokens, not pixels; only a model of pixels can reconstruct images")
        predictions = self.predict_clusters(past, patches)[:, self.sequences[1].of_image(0).to(past.device)]
        where = patches[self._predicted_steps()].flatten()
        pixels = patchify(truth, self.encoder.patch_size)
        if self.target == "normalized_pixels":
            mean, deviation = patch_statistics(pixels[:, where])
            predictions = predictions.to(truth.dtype) * deviation + mean
        pixels[:, where] = predictions.to(truth.dtype)
        return unpatchify(pixels, self.encoder.patch_size, self.encoder.grid_size)

    def _check_size(self, images: Tensor) -> None:
        if tuple(images.shape[2:]) != self.encoder.img_size:
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels in a model for {self.encoder.img_size}; "
                "set the model's img_size and the data set's size to the same value"
            )
