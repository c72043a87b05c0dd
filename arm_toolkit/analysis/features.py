"""Computes what an encoder's figures show: principal components, receptive fields, shares of the scan directions.

Legend: B images, H, W pixels, Gh, Gw patches of a column and a row, C channels, K scan directions, N blocks.
"""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.func import functional_call

from arm_backbone.arm import ARM
from arm_backbone.checkpoint.convert import arch_of
from arm_backbone.checkpoint.files import CheckpointError, model_state, naming, read_checkpoint
from arm_backbone.checkpoint.load import load_trunk
from arm_backbone.checkpoint.official import encoder_of
from arm_backbone.vim import Vim

DIRECTIONS = ("row forward", "row backward", "column forward", "column backward")


def load_encoder(path: str, scans: int | None = None) -> ARM:
    """The encoder of any checkpoint of ARM or Vim, with sizes inferred from the weights.

    Two settings are not recorded in the weights: the patch stride, taken to be the patch size, and the place of a class
    token, taken to be the middle.

    Args:
        path: a checkpoint of pretraining, of a backbone, classifier, detector or segmentor, or one of the authors'.
        scans: 4 copies the single scan of a pretrained model to four (Vim: two), as finetuning does; None keeps the
            checkpoint's.

    Raises:
        CheckpointError: if the file has no such weights, or its scans do not fit.
    """
    state = model_state(read_checkpoint(path), where=path)
    if encoder_of(state) == "VMamba":
        raise CheckpointError(f"{path} holds VMamba, whose stages have no common grid; give a checkpoint of ARM or Vim")
    with naming(path):
        arguments, backbone = arch_of(state) | dict(in_chans=3), dict(ARM=ARM, Vim=Vim)[encoder_of(state)]
    if scans is not None:
        arguments["scans"] = min(scans, backbone.most_scans)
    model = backbone(**arguments, out_indices=(arguments["arch"]["num_layers"] - 1,))
    load_trunk(model, state, path)
    return model.eval()


def normalize(image: Image.Image) -> Tensor:
    """An RGB image -> the encoder's input (1, 3, H, W), normalized with ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return ((torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std).unsqueeze(0)


def layers(model: ARM, images: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """The patch tokens (B, Gh * Gw, C) after each block, and the grid (Gh, Gw)."""
    x, grid = model.embed(images)
    for tokens in model.block_outputs(x, model.orders(grid)):
        yield model.patch_tokens(tokens), grid


def principal_colors(features: Tensor) -> Tensor:
    """Features (Gh, Gw, C) -> their first three principal components as RGB (Gh, Gw, 3) from 0 to 1.

    Each component is scaled from its 2nd to its 98th percentile. Its sign is chosen so that its median is not positive:
    most patches become dark.
    """
    flat = features.flatten(0, 1).double()
    flat = flat - flat.mean(0)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    components = flat @ axes[:3].T
    components = components * components.median(0).values.sign().neg().add(0.5).sign()
    low, high = (torch.quantile(components, q, dim=0) for q in (0.02, 0.98))
    return ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).view(*features.shape[:2], 3)


def receptive_fields(model: ARM, images: Tensor, seed: int = 0) -> Tensor:
    """How strongly each pixel affects the features of the centre patch after each block.

    The feature channels are summed with random signs; the result is the root mean square, over images and colour
    channels, of the gradient of that sum. Up to a constant this estimates the norm of the features' Jacobian (Luo et
    al., 2016, use one channel).

    Args:
        images: normalized (B, 3, H, W).

    Returns:
        (N, H, W)
    """
    generator = torch.Generator().manual_seed(seed)
    images = images.clone().requires_grad_()
    fields = []
    for features, (height, width) in layers(model, images):
        centre = features[:, height // 2 * width + width // 2]
        signs = torch.randint(0, 2, centre.shape, generator=generator, dtype=centre.dtype) * 2 - 1
        (gradient,) = torch.autograd.grad((centre * signs).sum(), images, retain_graph=True)
        fields.append(gradient.square().mean((0, 1)).sqrt())
    return torch.stack(fields)


def radius(field: Tensor, patch_size: int, share: float = 0.5) -> int:
    """Half the side in pixels of the smallest square around the centre patch that contains `share` of the field's sum.

    Args:
        field: (H, W), of one block, from `receptive_fields`.
    """
    rows, columns = (
        (torch.arange(size) + 0.5 - (size // patch_size // 2 + 0.5) * patch_size).abs() for size in field.shape
    )
    rows = rows.view(-1, 1)
    distance = torch.maximum(rows, columns).flatten()
    order = distance.argsort()
    reached = field.flatten()[order].cumsum(0) >= share * field.sum()
    return int(distance[order][int(reached.int().argmax())].ceil())


@torch.no_grad()
def direction_shares(model: ARM, images: Tensor) -> Tensor:
    """The norm of each direction's contribution to a token, divided by the sum of the K norms.

    A mixer's output is the mean over its directions. A direction's contribution is, up to the factor 1 / K, the output
    of a mixer with this direction only.

    Args:
        images: normalized (B, 3, H, W).

    Returns:
        (N, K, B, Gh, Gw)
    """
    inputs: dict[int, tuple[Tensor, Tensor]] = {}
    handles = [
        block.mixer.register_forward_pre_hook(lambda _, arguments, i=i: inputs.update({i: arguments}))
        for i, block in enumerate(model.blocks)
    ]
    try:
        *_, (_, grid) = layers(model, images)
    finally:
        for handle in handles:
            handle.remove()
    result = []
    for i, block in enumerate(model.blocks):
        x, orders = inputs[i]
        norms = [
            functional_call(block.mixer, _of_direction(block.mixer, k), (x, orders[k : k + 1])).norm(
                dim=2, keepdim=True
            )
            for k in range(model.scans)
        ]
        shares = torch.stack(norms) / torch.stack(norms).sum(0).clamp(min=1e-12)
        result.append(torch.stack([model.patch_tokens(share).squeeze(2).unflatten(1, grid) for share in shares]))
    return torch.stack(result)


def _of_direction(mixer: torch.nn.Module, k: int) -> dict[str, Tensor]:
    """The mixer's weights, restricted to direction k."""
    shared = ("in_proj.", "out_proj.")
    return {name: w if name.startswith(shared) else w[k : k + 1] for name, w in mixer.named_parameters()}
