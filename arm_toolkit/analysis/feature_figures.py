"""Figures of features, receptive fields and scan directions."""

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from arm_backbone.arm import ARM

from .features import DIRECTIONS, direction_shares, layers, normalise, principal_colours, radius, receptive_fields

SHOWN = 4  # blocks, evenly spaced in depth


def _blocks(model: ARM) -> list[int]:
    return sorted({round((i + 1) * model.num_layers / SHOWN) - 1 for i in range(SHOWN)} - {-1})


def _grid(rows: int, titles: list[str], width: float = 1.8) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width * len(titles), width * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=7)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _features(model: ARM, images: list[Image.Image]) -> Figure:
    figure, axes = _grid(len(images), ["image", *(f"block {i + 1}" for i in _blocks(model))])
    for row, image in zip(axes, images, strict=True):
        row[0].imshow(image)
        with torch.no_grad():
            outputs = list(layers(model, normalise(image)))
        for axis, i in zip(row[1:], _blocks(model), strict=True):
            features, grid = outputs[i]
            axis.imshow(principal_colours(features[0].unflatten(0, grid)).numpy())
    return figure


def _receptive_fields(model: ARM, images: list[Image.Image]) -> Figure:
    height, width = model.img_size
    fitted = [ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC) for image in images]
    fields = receptive_fields(model, torch.cat([normalise(image) for image in fitted]))
    columns = min(6, len(fields))
    rows = -(-len(fields) // columns)
    figure, axes = _grid(rows, [""] * columns)
    for i, (axis, field) in enumerate(zip(axes.flat, fields)):
        axis.set_title(f"block {i + 1}: half within {radius(field, model.patch_size)} px", fontsize=7)
        axis.imshow((field / field.max()).clamp(min=1e-4).log10().numpy(), cmap="viridis", vmin=-4, vmax=0)
    figure.supxlabel(f"logarithm of the gradient, 4 decades, mean of {len(images)} images", fontsize=6)
    return figure


def _directions(model: ARM, images: list[Image.Image]) -> Figure:
    shares = direction_shares(model, normalise(images[0]))[:, :, 0]  # (N, K, Gh, Gw)
    means = torch.stack([direction_shares(model, normalise(image)).mean((2, 3, 4)) for image in images]).mean(0)
    blocks = _blocks(model)
    figure = Figure(figsize=(1.8 * model.scans, 1.8 * (len(blocks) + 1)), layout="constrained")
    above, below = figure.subfigures(2, height_ratios=[len(blocks), 1])
    axes = above.subplots(len(blocks), model.scans, squeeze=False)
    for row, i in zip(axes, blocks, strict=True):
        for k, axis in enumerate(row):
            axis.imshow(shares[i, k].numpy(), cmap="magma", vmin=0, vmax=float(shares.max()))
            axis.set_title(f"block {i + 1}, {DIRECTIONS[k]}", fontsize=6)
            axis.set_axis_off()
    axis = below.subplots()
    for k, name in enumerate(DIRECTIONS):
        axis.plot(range(1, model.num_layers + 1), 100 * means[:, k].numpy(), label=name, linewidth=1)
    axis.set_xlabel(f"block (mean share in percent, {len(images)} images)", fontsize=6)
    axis.tick_params(labelsize=6)
    axis.legend(fontsize=5, ncols=2)
    return figure
