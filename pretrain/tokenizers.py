"""Tokenizers for discrete targets (ARM's "dVAE" ablation): they turn each patch of an image into one token.

A tokenizer is a module with an attribute `vocab_size` and a forward from normalized images (B, 3, H, W) to int64 tokens
(B, Gh * Gw) in raster order. It is frozen and not saved with the model that uses it; the configuration names its file.

Legend: B images, Gh, Gw grid height and width in patches, V tokens of the vocabulary, C values of a patch.
"""

import math

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from mmengine.utils import track_iter_progress
from torch import Tensor, nn

from arm_backbone.checkpoint.accounting import describe_mismatch, describe_values
from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint

from .data import ImageCrops
from .targets import normalized_pixels, patchify

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of the pretraining configurations, for 0 to 255


@MODELS.register_module()
class KMeansTokenizer(nn.Module):
    """Maps each normalized patch to the index of the nearest centroid.

    Args:
        checkpoint: file of centroids, written by `tools/fit_tokenizer.py`.
        patch_size: pixels.

    Raises:
        CheckpointError: if the file has no centroids of this patch size.
    """

    def __init__(self, checkpoint: str, patch_size: int = 16) -> None:
        super().__init__()
        centroids = model_state(read_checkpoint(checkpoint), where=checkpoint).get("centroids")
        if centroids is None or centroids.ndim != 2 or centroids.shape[1] != 3 * patch_size**2:
            raise CheckpointError(
                f"{checkpoint} has no centroids for patches of {patch_size} pixels; run tools/fit_tokenizer.py"
            )
        problem = describe_values(dict(centroids=torch.empty(0)), dict(centroids=centroids))
        if problem or not len(centroids):
            raise CheckpointError(f"{checkpoint}: {problem or 'no centroids'}; run tools/fit_tokenizer.py")
        self.vocab_size, self.patch_size = len(centroids), patch_size
        self.register_buffer("centroids", centroids)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        patches = normalized_pixels(patchify(images.float(), self.patch_size))
        return nearest(patches, self.centroids)


def sample_patches(crops: ImageCrops, count: int, patch_size: int) -> list[Tensor]:
    """Normalized patches of randomly chosen images; shows a progress bar.

    Args:
        count: number of images; all of them if there are fewer.
        patch_size: pixels.

    Returns:
        one tensor (Gh * Gw, C) per image.
    """
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
    batches = []
    for index in track_iter_progress(torch.randperm(len(crops))[:count].tolist()):
        image = (crops[index]["inputs"].unsqueeze(0).float() - mean) / std
        batches.append(normalized_pixels(patchify(image, patch_size))[0])
    return batches


def nearest(patches: Tensor, centroids: Tensor) -> Tensor:
    """Patches (..., C) and centroids (V, C) -> (...), the index of the nearest centroid."""
    return (patches @ centroids.T - centroids.square().sum(1) / 2).argmax(-1)


def fit_centroids(batches: list[Tensor], vocab_size: int, rounds: int = 20) -> Tensor:
    """Cluster patches with k-means (Lloyd's algorithm).

    Args:
        batches: tensors (n, C) of patches.
        vocab_size: V.
        rounds: iterations.

    Returns:
        centroids (V, C).

    Raises:
        ValueError: for fewer patches than centroids.
    """
    patches = torch.cat(batches)
    if len(patches) < vocab_size:
        raise ValueError(f"{len(patches)} patches are too few for {vocab_size} tokens; give more images")
    centroids = patches[torch.randperm(len(patches))[:vocab_size]].clone()
    for _ in range(rounds):
        tokens = torch.cat([nearest(part, centroids) for part in patches.split(8192)])
        sums = torch.zeros_like(centroids).index_add_(0, tokens, patches)
        counts = torch.bincount(tokens, minlength=vocab_size)
        used = counts > 0
        centroids[used] = sums[used] / counts[used, None]
        empty = int((~used).sum())
        centroids[~used] = patches[torch.randperm(len(patches))[:empty]]  # re-seed empty clusters
    return centroids


class _DVAEBlock(nn.Module):
    """Residual block of DALL-E's encoder: three 3x3 convolutions and one 1x1, scaled by 1 / layers ** 2."""

    def __init__(self, inputs: int, outputs: int, layers: int) -> None:
        super().__init__()
        hidden = outputs // 4
        widths = (inputs, hidden, hidden, hidden, outputs)
        self.gain = 1 / layers**2
        self.id_path = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.res_path = nn.Sequential()
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False), 1):
            self.res_path.add_module(f"relu_{i}", nn.ReLU())
            self.res_path.add_module(f"conv_{i}", nn.Conv2d(a, b, 1 if i == 4 else 3, padding=0 if i == 4 else 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


@MODELS.register_module()
class DVAETokenizer(nn.Module):
    """The encoder of DALL-E's discrete VAE, with weights from a local file.

    The encoder has stride 8, so images are resized to 8 x 8 pixels per patch.

    Args:
        checkpoint: state dict whose weights are named `w` and `b`, as in the original, or `weight` and `bias`.
        patch_size: pixels.
        width: channels of the first layer; the default is the published model's.
        vocab_size: V; the default is the published model's.

    Raises:
        CheckpointError: if the file is not such an encoder.
    """

    GROUPS, BLOCKS = 4, 2
    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # with which the images are normalized, for 0 to 1
    EPS = 0.1  # DALL-E maps [0, 1] to [0.1, 0.9]

    def __init__(self, checkpoint: str, patch_size: int = 16, width: int = 256, vocab_size: int = 8192) -> None:
        super().__init__()
        self.vocab_size, self.patch_size = vocab_size, patch_size
        layers = self.GROUPS * self.BLOCKS
        blocks = nn.Sequential()
        blocks.add_module("input", nn.Conv2d(3, width, 7, padding=3))
        inputs = width
        for group in range(1, self.GROUPS + 1):
            outputs = width * 2 ** (group - 1)
            part = nn.Sequential()
            for block in range(1, self.BLOCKS + 1):
                part.add_module(f"block_{block}", _DVAEBlock(inputs, outputs, layers))
                inputs = outputs
            if group < self.GROUPS:
                part.add_module("pool", nn.MaxPool2d(2))
            blocks.add_module(f"group_{group}", part)
        head = nn.Sequential()
        head.add_module("relu", nn.ReLU())
        head.add_module("conv", nn.Conv2d(inputs, vocab_size, 1))
        blocks.add_module("output", head)
        self.blocks = blocks
        self._load(checkpoint)
        self.register_buffer("mean", torch.tensor(self.MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(self.STD).view(3, 1, 1))

    def _load(self, path: str) -> None:
        state = model_state(read_checkpoint(path), where=path)
        renamed = {}
        for name, tensor in state.items():
            stem, _, last = name.rpartition(".")
            renamed[f"{stem}.{dict(w='weight', b='bias').get(last, last)}"] = tensor
        parameters = dict(self.named_parameters())
        problem = describe_mismatch(
            {n: p.shape for n, p in parameters.items()}, {n: t.shape for n, t in renamed.items()}
        ) or describe_values(parameters, renamed)
        if problem:
            raise CheckpointError(f"{path} is not an encoder of DALL-E's dVAE: {problem}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(renamed[name])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        height, width = (math.ceil(s / self.patch_size) * 8 for s in images.shape[2:])
        x = (images.float() * self.std + self.mean).clamp(0, 1)
        x = F.interpolate(x, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
        return self.blocks((1 - 2 * self.EPS) * x + self.EPS).argmax(1).flatten(1)
