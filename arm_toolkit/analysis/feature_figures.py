"""Figures of an encoder's features, receptive fields and scan directions."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from arm_backbone.arm import ARM
from arm_backbone.checkpoint.writing import replacing
from arm_images.find import find_images
from arm_images.read import ImageFiles

from .features import DIRECTIONS, direction_shares, layers, normalize, principal_colors, radius, receptive_fields

SHOWN = 4  # blocks per figure, evenly spaced in depth
CELL = 1.8  # inches of a cell


def open_images(path: str, count: int, max_side: int) -> list[Image.Image]:
    """The first `count` images under a path as RGB, shrunk if needed so that no side exceeds `max_side` pixels.

    Raises:
        DataError: if there are no images, or one of them cannot be read.
    """
    files = ImageFiles(find_images(path))
    images = [files.load_rgb(i)[0] for i in range(min(count, len(files)))]
    for image in images:
        image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return images


def write_figures(model: ARM, images: list[Image.Image], folder: Path) -> list[Path]:
    """Write features.png, receptive_field.png, and directions.png if the model has several scans.

    Args:
        images: RGB, of any sizes.
        folder: created if it does not exist.

    Returns:
        the files written.
    """
    draw = {"features.png": features_figure, "receptive_field.png": receptive_field_figure}
    if model.scans > 1:
        draw["directions.png"] = directions_figure
    for name, function in draw.items():
        with replacing(folder / name) as partial:
            function(model, images).savefig(partial, format="png", dpi=110)
    return [folder / name for name in draw]


def features_figure(model: ARM, images: list[Image.Image]) -> Figure:
    """A row per image: the image, and the principal components of its patch features after some blocks."""
    figure, axes = _grid(len(images), ["image", *(f"block {i + 1}" for i in _blocks(model))])
    for row, image in zip(axes, images, strict=True):
        row[0].imshow(image)
        with torch.no_grad():
            outputs = list(layers(model, normalize(image)))
        for axis, i in zip(row[1:], _blocks(model), strict=True):
            features, grid = outputs[i]
            axis.imshow(principal_colors(features[0].unflatten(0, grid)).numpy())
    return figure


def receptive_field_figure(model: ARM, images: list[Image.Image]) -> Figure:
    """A cell per block: the receptive field of the centre patch, averaged over images cropped to `img_size`."""
    height, width = model.img_size
    fitted = [ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC) for image in images]
    fields = receptive_fields(model, torch.cat([normalize(image) for image in fitted]))
    columns = min(6, len(fields))
    rows = -(-len(fields) // columns)
    figure, axes = _grid(rows, [""] * columns)
    for i, (axis, field) in enumerate(zip(axes.flat, fields)):
        axis.set_title(f"block {i + 1}: half within {radius(field, model.patch_size)} px", fontsize=7)
        axis.imshow((field / field.max()).clamp(min=1e-4).log10().numpy(), cmap="viridis", vmin=-4, vmax=0)
    figure.supxlabel(f"log10 of the gradient norm, 4 decades, mean of {len(images)} images", fontsize=6)
    return figure


def directions_figure(model: ARM, images: list[Image.Image]) -> Figure:
    """The share of each scan direction: per patch of the first image, and per block averaged over all images."""
    shares = direction_shares(model, normalize(images[0]))[:, :, 0]  # (N, K, Gh, Gw)
    means = torch.stack([direction_shares(model, normalize(image)).mean((2, 3, 4)) for image in images]).mean(0)
    blocks = _blocks(model)
    figure = Figure(figsize=(CELL * model.scans, CELL * (len(blocks) + 1)), layout="constrained")
    above, below = figure.subfigures(2, height_ratios=[len(blocks), 1])
    axes = above.subplots(len(blocks), model.scans, squeeze=False)
    for row, i in zip(axes, blocks, strict=True):
        for k, axis in enumerate(row):
            axis.imshow(shares[i, k].numpy(), cmap="magma", vmin=0, vmax=float(shares.max()))
            axis.set_title(f"block {i + 1}, {DIRECTIONS[k]}", fontsize=6)
            axis.set_axis_off()
    axis = below.subplots()
    for k, name in enumerate(DIRECTIONS[: model.scans]):
        axis.plot(range(1, model.num_layers + 1), 100 * means[:, k].numpy(), label=name, linewidth=1)
    axis.set_xlabel(f"block (mean share in percent, {len(images)} images)", fontsize=6)
    axis.tick_params(labelsize=6)
    axis.legend(fontsize=5, ncols=2)
    return figure


def _blocks(model: ARM) -> list[int]:
    """Indices of the blocks that a figure shows: at most `SHOWN`, the last one included."""
    return sorted({round((i + 1) * model.num_layers / SHOWN) - 1 for i in range(SHOWN)} - {-1})


def _grid(rows: int, titles: list[str]) -> tuple[Figure, np.ndarray]:
    """A figure with a title per column, and its axes (rows, columns)."""
    figure = Figure(figsize=(CELL * len(titles), CELL * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=7)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes
