"""MAE: the encoder reads a part of the patches, a decoder predicts the pixels of the others.

Legend: B images, M patches of an image, L tokens of an image (class token included), Lk tokens that the encoder reads,
C encoder channels, E decoder channels, Gh, Gw grid height and width in patches.
"""

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from arm_backbone.arm import trunk_class
from arm_backbone.pos_embed import sincos_pos_embed
from arm_backbone.scan_order import grid_orders, restrict_orders

from .mae_decoder import MAEDecoder
from .masking import kept_patches, mask_patches
from .positions import fix_positions
from .protocol import Reconstruction
from .targets import normalized_pixels, patch_statistics, patchify, target_name, unpatchify


@MODELS.register_module()
class MAEPretrainer(BaseModel):
    """Drops the masked patches, and predicts their pixels from the others.

    Positions are added before patches are dropped. The kept tokens stay in raster order; with several scans each
    direction reads its order restricted to them. A class token stays in the place that finetuning gives it.

    Implements `arm_pretrain.protocol.Reconstructs` and `arm_toolkit.engine.fsdp.Shardable`.

    Args:
        arch: size of the encoder, see `ARCHS` of `arm_backbone.arm` or `arm_backbone.vim`.
        img_size: pixels, one number or (height, width).
        patch_size: pixels.
        encoder: "ARM" or "Vim".
        scans: 1 (causal, as in ARM's pretraining), or as many as in finetuning (ARM 4, Vim 2).
        cls_token: None, "middle" or "tail", as in `arm_backbone.arm.ARMTrunk`.
        mask_ratio: fraction of the patches that are masked.
        target: "normalized_pixels", the pixels of a patch, normalized per patch (`norm_pix_loss`), or "pixels".
        decoder_dim: E.
        decoder_depth: number of decoder blocks.
        decoder_blocks: "attention", or "mamba" with four scans.
        decoder_heads: of attention blocks.
        with_cp: activation checkpointing of the encoder, see `arm_backbone.arm.ARMTrunk`.
        data_preprocessor: configuration of mmengine's data preprocessor, which normalizes the images.

    Raises:
        ValueError: if the image does not divide into patches, for a mask ratio that leaves no patch, or for another
            argument out of range.
    """

    images_per_sequence, units_per_image, predicts_pixels = 1, None, True  # for `Reconstructs`

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        encoder: str = "ARM",
        scans: int = 1,
        cls_token: str | None = None,
        mask_ratio: float = 0.75,
        target: str = "normalized_pixels",
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_blocks: str = "attention",
        decoder_heads: int = 16,
        with_cp: bool | str = False,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor)
        self.encoder = trunk_class(encoder)(
            arch, img_size, patch_size=patch_size, scans=scans, cls_token=cls_token, with_cp=with_cp
        )
        height, width = self.encoder.grid_size
        if (height * patch_size, width * patch_size) != self.encoder.img_size:
            raise ValueError(f"img_size={img_size!r} does not divide into patches of {patch_size} pixels")
        kept_patches(height * width, mask_ratio)  # raises if it leaves none
        self.mask_ratio, self.target = mask_ratio, target_name(target)
        self.decoder = MAEDecoder(
            self.encoder.embed_dims, decoder_dim, decoder_depth, 3 * patch_size**2, decoder_blocks, decoder_heads
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))
        self.register_buffer("decoder_pos_embed", torch.empty(1, height * width, decoder_dim), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the mask token, the fixed position tables and the class token's position, which is zero."""
        fix_positions(self.encoder)
        table = sincos_pos_embed(*self.encoder.grid_size, self.mask_token.shape[2])
        self.decoder_pos_embed.copy_(table.flatten(1, 2))
        nn.init.normal_(self.mask_token, std=0.02)

    def sharded_parts(self) -> list[nn.Module]:
        """Modules that fully sharded training shards individually."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def forward_methods(self) -> tuple[str, ...]:
        """Methods besides `forward` that compute with the weights, for fully sharded training."""
        return ("losses_by_position", "reconstruct")

    def draw_noise(self, images: Tensor) -> Tensor:
        """(B, M) numbers in [0, 1); the patches with the smallest are kept."""
        height, width = self.encoder.grid_size
        return torch.rand(len(images), height * width, device=images.device)

    def encode(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the encoder on the patches that the mask leaves.

        Args:
            images: normalized (B, 3, H, W).
            noise: (B, M), see `masking.mask_patches`.

        Returns:
            the outputs of the last block (B, Lk, C) in raster order, their places in the sequence of an image (B, Lk),
            and the mask (B, M), 1 for masked.
        """
        self._check_size(images)
        x, grid = self.encoder.embed(images)
        kept, mask = mask_patches(noise, self.mask_ratio)
        patches, others = self._places(x.shape[1], x.device)
        kept = torch.cat([patches[kept], others.expand(len(kept), -1)], 1).sort(1).values
        x = x.gather(1, kept.unsqueeze(2).expand(-1, -1, x.shape[2]))
        for output in self.encoder.block_outputs(x, restrict_orders(self.encoder.orders(grid), kept)):
            x = output
        return x, kept, mask

    def _places(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Places of the patches (M,) and of the other tokens (L - M,) in the sequence of an image."""
        patches = self.encoder.patch_tokens(torch.arange(length, device=device).view(1, -1, 1)).flatten()
        is_other = torch.ones(length, device=device).index_fill_(0, patches, 0)
        return patches, is_other.argsort(descending=True, stable=True)[: length - len(patches)]

    def predict_patches(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions for all patches (B, M, values per patch), and the mask (B, M); arguments as in `encode`."""
        tokens, kept, mask = self.encode(images, noise)
        grid, table = self.encoder.grid_size, self.decoder_pos_embed
        orders = grid_orders(*grid, 4, self.encoder.cls_token_position, tokens.device)
        length = orders.tensor.shape[1]
        patches, _ = self._places(length, tokens.device)
        positions = table.new_zeros(1, length, table.shape[2]).index_copy_(1, patches, table)
        return self.decoder(tokens, kept, self.mask_token, positions, orders)[:, patches], mask

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"):
        """mmengine's interface, with a mask that is drawn at each call.

        Args:
            inputs: normalized images (B, 3, H, W).

        Returns:
            with mode "loss" dict(loss=mean squared error of the masked patches), with "tensor" the predictions of
            `predict_patches`, with "predict" the images with the masked patches predicted.

        Raises:
            ValueError: for images of another size, or for the loss if the mask ratio masks no patch.
        """
        predictions, mask = self.predict_patches(inputs, self.draw_noise(inputs))
        if mode == "loss":
            return dict(loss=self.loss(inputs, predictions, mask))
        return predictions if mode == "tensor" else self.fill_in(inputs, predictions, mask)

    def loss(self, images: Tensor, predictions: Tensor, mask: Tensor) -> Tensor:
        """The mean squared error of the masked patches of a batch, a scalar."""
        if kept_patches(mask.shape[1], self.mask_ratio) == mask.shape[1]:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} masks no patch, so there is nothing to learn; give e.g. 0.75"
            )
        losses = self.patch_losses(images, predictions)
        return (losses * mask).sum() / mask.sum()

    def targets(self, images: Tensor) -> Tensor:
        """(B, M, values per patch) from images (B, 3, H, W)."""
        pixels = patchify(images, self.encoder.patch_size)
        return normalized_pixels(pixels) if self.target == "normalized_pixels" else pixels

    def patch_losses(self, images: Tensor, predictions: Tensor) -> Tensor:
        """(B, M), the mean squared error of every patch."""
        target = self.targets(images)
        return (predictions.to(target.dtype) - target).square().mean(2)

    @torch.no_grad()
    def fill_in(self, images: Tensor, predictions: Tensor, mask: Tensor) -> Tensor:
        """Images (B, 3, H, W) in which predictions replace the masked patches.

        Predictions of normalized pixels take the mean and deviation of the true patch.
        """
        pixels = patchify(images, self.encoder.patch_size)
        predictions = predictions.to(pixels.dtype)
        if self.target == "normalized_pixels":
            mean, deviation = patch_statistics(pixels)
            predictions = predictions * deviation + mean
        pixels = torch.where(mask.unsqueeze(2).bool(), predictions, pixels)
        return unpatchify(pixels, self.encoder.patch_size, self.encoder.grid_size)

    @torch.no_grad()
    def losses_by_position(self, images: Tensor) -> dict[str, float]:
        """Mean loss of the masked patches in each row of patches, "row_1" to "row_Gh", of images (B, 3, H, W)."""
        predictions, mask = self.predict_patches(images, self.draw_noise(images))
        losses = self.patch_losses(images, predictions) * mask
        sums, counts = (x.unflatten(1, self.encoder.grid_size).sum((0, 2)).tolist() for x in (losses, mask))
        rows = enumerate(zip(sums, counts, strict=True), 1)
        return {f"row_{row}": total / count for row, (total, count) in rows if count}

    @torch.no_grad()
    def reconstruct(self, images: Tensor, given: None = None) -> Reconstruction:
        """Mask patches at random, and predict them; in what the model sees they are grey.

        Args:
            images: normalized (B, 3, H, W).
            given: nothing, because all masked patches are predicted at once.
        """
        predictions, mask = self.predict_patches(images, self.draw_noise(images))
        pixels = patchify(images, self.encoder.patch_size) * (1 - mask.unsqueeze(2))
        seen = unpatchify(pixels, self.encoder.patch_size, self.encoder.grid_size)
        patches, is_normalized = mask.shape[1], self.target == "normalized_pixels"
        return Reconstruction(
            {"predicted": self.fill_in(images, predictions, mask)},
            "each predicted patch takes its mean and deviation from the true one" if is_normalized else "",
            {f"seen, {kept_patches(patches, self.mask_ratio)} of {patches} patches": seen},
        )

    def _check_size(self, images: Tensor) -> None:
        if tuple(images.shape[2:]) != self.encoder.img_size:
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels in a model for {self.encoder.img_size}; "
                "set the model's img_size and the data set's size to the same value"
            )
