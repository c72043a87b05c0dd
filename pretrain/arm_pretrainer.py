"""Autoregressive pretraining of ARM (section 3.2): encode clusters in order, predict the pixels of the next one.

Legend: B images, M clusters, P patches of a cluster, L = (M - 1) * P tokens, C encoder and E decoder channels.
"""

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from arm_backbone.arm import ARMTrunk
from arm_backbone.pos_embed import sincos_pos_embed

from .clusters import cluster_causal_mask, cluster_patches
from .decoder import Decoder, skip_blocks
from .targets import normalised_pixels, patch_statistics, patchify, unpatchify


@MODELS.register_module()
class ARMPretrainer(BaseModel):
    """One causal scan over the clusters; every cluster but the first is predicted from those before it.

    Args:
        arch: size of the encoder, see `arm_backbone.arm.ARCHS`.
        img_size: pixels, one number or (height, width); must divide into clusters.
        patch_size: pixels.
        cluster_side: patches along one side of a cluster (4: 64 pixels).
        decoder_dim, decoder_depth: width (a multiple of 64) and number of decoder blocks.
        with_cp: recompute encoder blocks in the backward, see `arm_backbone.arm.ARMTrunk`.
        data_preprocessor: mmengine's, turns raw images into normalised ones.

    Raises:
        ValueError: if the image does not divide into clusters.
    """

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 192,
        patch_size: int = 16,
        cluster_side: int = 4,
        decoder_dim: int = 512,
        decoder_depth: int = 4,
        with_cp: bool | str = False,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor)
        self.encoder = ARMTrunk(arch, img_size, patch_size, patch_size, scans=1, with_cp=with_cp)
        dim = self.encoder.embed_dims
        height, width = self.encoder.grid_size
        if (height * patch_size, width * patch_size) != self.encoder.img_size:
            raise ValueError(f"img_size={img_size!r} does not divide into patches of {patch_size} pixels")
        self.skip_blocks = skip_blocks(self.encoder.num_layers, decoder_depth)
        self.decoder = Decoder(dim, decoder_dim, decoder_depth, 3 * patch_size**2)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim).normal_(std=0.02))

        # fixed tables, kept with the weights: the authors' differ from ours in the last bit
        self.encoder.pos_embed.data.copy_(sincos_pos_embed(height, width, dim))
        self.encoder.pos_embed.requires_grad_(False)
        self.register_buffer("decoder_pos_embed", sincos_pos_embed(height, width, decoder_dim).flatten(1, 2))

        patches = cluster_patches(height, width, cluster_side)
        self.register_buffer("patches", patches, persistent=False)  # (M, P)
        self.register_buffer("mask", cluster_causal_mask(len(patches) - 1, patches.shape[1]), persistent=False)

    def encode(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the skip features, each (B, L, C), of all clusters but the last."""
        self._check_size(images)
        x = (self.encoder.patch_embed(images) + self.encoder.pos_embed).flatten(1, 2)
        x = x[:, self.patches[:-1].flatten()]
        orders = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        outputs = []
        for i in range(self.encoder.num_layers):
            x = self.encoder.run_block(i, x, orders)
            outputs.append(x)
        return [outputs[i] for i in self.skip_blocks]

    def predict_clusters(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, L, 3 * patch_size ** 2), the normalised pixels of clusters 1 to M - 1 in their order."""
        skips = self.encode(images)
        query = self.mask_token + self.decoder_pos_embed[:, self.patches[1:].flatten()]
        return self.decoder(query.expand(len(images), -1, -1), skips, self.mask)

    def target_patches(self, images: Tensor) -> Tensor:
        """(B, L, 3 * patch_size ** 2), the pixels of clusters 1 to M - 1 in the order of the predictions."""
        return patchify(images, self.encoder.patch_size)[:, self.patches[1:].flatten()]

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"):
        """Normalised images (B, 3, H, W).

        Returns:
            mode "loss": dict(loss=mean squared error of the normalised pixels); "tensor": the predictions; "predict":
            the images with all clusters but the first replaced by their prediction.
        """
        if mode == "predict":
            return self.reconstruct(inputs)
        predictions = self.predict_clusters(inputs)
        if mode == "tensor":
            return predictions
        target = normalised_pixels(self.target_patches(inputs))
        return dict(loss=(predictions.to(target.dtype) - target).square().mean())

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Normalised images -> the same with every cluster but the first predicted from the true ones before it.

        The model predicts normalised pixels; each patch is put back with the mean and deviation of the true patch.
        """
        mean, deviation = patch_statistics(self.target_patches(images))
        patches = patchify(images, self.encoder.patch_size)
        patches[:, self.patches[1:].flatten()] = self.predict_clusters(images).to(images.dtype) * deviation + mean
        return unpatchify(patches, self.encoder.patch_size, self.encoder.grid_size)

    def _check_size(self, images: Tensor) -> None:
        if tuple(images.shape[2:]) != self.encoder.img_size:
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels in a model for {self.encoder.img_size}: "
                "set img_size of model and data alike"
            )
