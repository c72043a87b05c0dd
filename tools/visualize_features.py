"""Draw what an encoder looks at: features, receptive fields, and the share of each scan direction.

Writes into a folder:
  features.png         photographs at their full size, and the principal components of their patch features as colours
  receptive_field.png  after each block, how much each pixel moves the centre patch
  directions.png       for four scans, what each direction adds to each patch, and on average after each block

Examples, for a checkpoint of any kind (pretraining, backbone, classifier, detector, segmentor, the authors'):
    python tools/visualize_features.py work_dirs/arm_ti/epoch_20.pth photographs/ --out work_dirs/features
    python tools/visualize_features.py checkpoints/arm_b_pretrain.pth photographs/ --scans 4
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from arm_backbone.arm import ARM
from arm_pretrain.data import ImageFiles, find_images
from arm_toolkit.errors import ConfigError, run_tool
from arm_toolkit.features import (
    DIRECTIONS,
    direction_shares,
    layers,
    load_encoder,
    normalise,
    principal_colours,
    radius,
    receptive_fields,
)

SHOWN = 4  # blocks, evenly spaced in depth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="weights of any kind, with patches side by side (no smaller stride)")
    parser.add_argument("images", help="folder of images at any depth, or a text file with one path a line")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/features"), help="folder (%(default)s)")
    parser.add_argument("--count", type=int, default=4, help="images, the first ones (4)")
    parser.add_argument(
        "--scans", type=int, choices=(1, 4), help="4 copies a single scan to four (default: the file's)"
    )
    parser.add_argument("--max-side", type=int, default=1024, help="pixels; larger images are made smaller (1024)")
    args = parser.parse_args()
    if args.count < 1 or args.max_side < 16:
        raise ConfigError(f"--count {args.count} --max-side {args.max_side}: give at least 1 image of 16 pixels")
    model = load_encoder(args.checkpoint, args.scans)
    try:
        files = ImageFiles(find_images(args.images))
    except (ValueError, ImportError) as error:  # no image, a broken archive
        raise ConfigError(str(error)) from None
    images = [files.load_rgb(i)[0] for i in range(min(args.count, len(files)))]
    for image in images:
        image.thumbnail((args.max_side, args.max_side), Image.Resampling.BICUBIC)
    args.out.mkdir(parents=True, exist_ok=True)
    _save(_features(model, images), args.out / "features.png")
    _save(_receptive_fields(model, images), args.out / "receptive_field.png")
    if model.scans > 1:
        _save(_directions(model, images), args.out / "directions.png")
    else:
        print("one scan: no directions to compare (--scans 4 copies it to four)")


def _save(figure: Figure, path: Path) -> None:
    partial = path.with_name(f"{path.name}.part")
    figure.savefig(partial, format="png", dpi=110)
    os.replace(partial, path)
    print(path)


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


if __name__ == "__main__":
    run_tool(main)
