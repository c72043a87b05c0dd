"""How the quickstart's report looks: pictures from the files of the runs (PNG, JPEG), the page in HTML and Markdown.

Legend: R pictures (one a row), H x W pixels each.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from mmengine.config import Config
from mmengine.registry import MODELS

from arm_backbone.checkpoint.files import model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_exact
from arm_pretrain.data import ImageCrops
from arm_pretrain.targets import patch_statistics, patchify, unpatchify

from ..analysis.reconstruction import load_images, to_pixels
from .runs import Objects

# Okabe and Ito's colours, which the common forms of colour blindness keep apart: two for the arms
# of the comparison, others for the classes.
ARM_COLOURS = {"AR-pretrained": "#0072B2", "from scratch": "#D55E00"}
ROW_COLOURS = {  # of a table: an arm, or the probe of the same arm
    **ARM_COLOURS,
    "frozen encoder, AR-pretrained": ARM_COLOURS["AR-pretrained"],
    "frozen encoder, random": ARM_COLOURS["from scratch"],
}
CLASS_COLOURS = ("#009E73", "#CC79A7", "#F0E442", "#56B4E9", "#E69F00")
BACKGROUND = "#5A5A5A"
INK, FAINT = "#333333", "#888888"
WIDTH = 6.0  # inches; narrow, so that the letters are large on a phone
DPI = 190


@dataclass(frozen=True)
class Reconstruction:
    """What a pretrained model makes of pictures.

    Attributes:
        images: (R, H, W, 3) uint8.
        means: the same with each patch to be predicted at its mean, (R, H, W, 3) uint8.
        predictions: (R, H, W, 3) uint8.
        given: side in pixels of the upper left cluster, which is not predicted.
        loss: mean over all pictures of the folder, shown or not.
        count: of all pictures of the folder.
    """

    images: np.ndarray
    means: np.ndarray
    predictions: np.ndarray
    given: int
    loss: float
    count: int


@torch.no_grad()
def reconstruct(config: Path, checkpoint: Path, pictures: Path, rows: int) -> Reconstruction:
    """Run a pretrained model on a folder of pictures (resized centre crops) and keep the first rows.

    Args:
        config: of the pretraining, as it lies in its work dir.
    """
    cfg = Config.fromfile(config)
    model = MODELS.build(cfg.model).eval()
    load_exact(model, model_state(read_checkpoint(checkpoint)), str(checkpoint))
    crops = ImageCrops(str(pictures), size=cfg.train_dataloader.dataset.size, augment=False)
    losses, shown = [], None
    for start in range(0, len(crops), rows):
        images = load_images(model, crops, range(start, min(start + rows, len(crops))))
        losses += [model(images, mode="loss")["loss"].item()] * len(images)
        if shown is None:
            shown = [images, _patch_means(model, images), model(images, mode="predict")]
    side = round(model.patches.shape[1] ** 0.5) * model.encoder.patch_size
    return Reconstruction(*(to_pixels(model, x) for x in shown), side, float(np.mean(losses)), len(crops))


def _patch_means(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Each patch of all clusters but the first at its mean: what a constant predictor gives."""
    patches = patchify(images, model.encoder.patch_size)
    where = model.patches[1:].flatten()
    patches[:, where] = patch_statistics(patches[:, where])[0].expand_as(patches[:, where])
    return unpatchify(patches, model.encoder.patch_size, model.encoder.grid_size)


# --- drawing ---


def class_colour(index: int) -> str:
    """The colour of the index-th class (background not counted); they repeat after five."""
    return CLASS_COLOURS[index % len(CLASS_COLOURS)]


def smooth(values: Sequence[float], half: int = 2) -> list[float]:
    """Moving average over up to `half` values on either side, as many on both: the ends stay as they are."""
    spans = [min(half, i, len(values) - 1 - i) for i in range(len(values))]
    return [float(np.mean(values[i - span : i + span + 1])) for i, span in enumerate(spans)]


def loss_curves(
    curves: dict[str, tuple[str, list[tuple[int, float]]]], constant: tuple[float, str] | None = None
) -> bytes:
    """Losses over training steps as PNG: values as given faint, lightly smoothed on top.

    Args:
        curves: label -> (colour, pairs of step and loss).
        constant: height of a dashed line and its label.
    """
    fig = Figure(figsize=(WIDTH, 2.9), dpi=DPI, layout="constrained")
    axes = fig.add_subplot()
    for label, (colour, points) in curves.items():
        steps, losses = zip(*points)
        axes.plot(steps, losses, color=colour, alpha=0.3, linewidth=1.2)
        axes.plot(steps, smooth(losses), color=colour, linewidth=2.2, label=label)
    if constant is not None:
        axes.axhline(constant[0], color=FAINT, linestyle="--", linewidth=1.2, label=constant[1])
    axes.set_xlabel("training step", fontsize=12, color=INK)
    axes.set_ylabel("loss", fontsize=12, color=INK)
    axes.tick_params(labelsize=11, colors=INK)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.legend(frameon=False, fontsize=12, labelcolor=INK)
    return _encode(fig, "png")


def reconstructions(shown: Reconstruction) -> bytes:
    """Input, patch means, prediction and absolute error (0..255), one picture a row, as JPEG."""
    errors = np.abs(shown.images.astype(float) - shown.predictions).mean(-1)  # (R, H, W)
    top = max(10, 10 * np.ceil(np.percentile(errors, 99.5) / 10))
    titles = ("input", "patch means", "prediction", "absolute error")
    fig, axes = _grid(shown.images, titles, bottom=0.5)
    for row, *pictures, error in zip(axes, shown.images, shown.means, shown.predictions, errors):
        for cell, picture in zip(row, pictures):
            cell.imshow(picture)
        mapped = row[3].imshow(error, cmap="magma", vmin=0, vmax=top)
        for cell in row[1:]:
            side = shown.given
            outline = dict(fill=False, color="white", linewidth=1.5, linestyle=":")
            cell.add_patch(Rectangle((0, 0), side, side, **outline))
    height = fig.get_figheight()
    bar = fig.add_axes((0.77, 0.32 / height, 0.21, 0.1 / height))
    bar = fig.colorbar(mapped, cax=bar, orientation="horizontal", ticks=(0, top / 2, top))
    bar.ax.tick_params(labelsize=10, colors=INK, length=2, pad=2)
    bar.outline.set_visible(False)
    return _encode(fig, "jpeg")


def detections(images: list[np.ndarray], columns: dict[str, list[Objects]], names: list[str]) -> bytes:
    """Pictures with boxes, masks, class names and scores (percent), one picture a row, as JPEG.

    Args:
        images: R arrays (H, W, 3) uint8.
        columns: title -> the objects of each picture.
        names: of the classes.
    """
    fig, axes = _grid(images, tuple(columns))
    for column, objects in enumerate(columns.values()):
        for row, (image, found) in enumerate(zip(images, objects)):
            _draw_objects(axes[row][column], image, found, names)
    return _encode(fig, "jpeg")


def segmentations(images: list[np.ndarray], columns: dict[str, list[np.ndarray]], names: list[str]) -> bytes:
    """Pictures and label maps in colours, one picture a row, as JPEG.

    Args:
        images: R arrays (H, W, 3) uint8.
        columns: title -> a label map (H, W) of each picture; 0 is ignored (white), k the k-th name.
        names: of the labels, background first.
    """
    colours = [BACKGROUND, *(class_colour(i) for i in range(len(names) - 1))]
    table = np.array([to_rgb("white"), *map(to_rgb, colours)])
    fig, axes = _grid(images, ("image", *columns), bottom=0.4)
    for row, image in enumerate(images):
        axes[row][0].imshow(image)
        for column, maps in enumerate(columns.values(), start=1):
            axes[row][column].imshow(table[maps[row]], interpolation="nearest")
    handles = [Patch(facecolor=colour, label=name) for colour, name in zip(colours, names)]
    fig.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=12, labelcolor=INK)
    return _encode(fig, "jpeg")


def _draw_objects(axes: Axes, image: np.ndarray, objects: Objects, names: list[str]) -> None:
    height, width = image.shape[:2]
    picture = 0.9 * image / 255
    for label, mask in zip(objects.labels, objects.masks):
        picture[mask] = 0.4 * picture[mask] + 0.6 * np.array(to_rgb(class_colour(label)))
    axes.imshow(picture, extent=(0, width, height, 0))
    for i, (label, (left, top, right, bottom)) in enumerate(zip(objects.labels, objects.boxes)):
        colour = class_colour(label)
        size = (right - left, bottom - top)
        axes.add_patch(Rectangle((left, top), *size, fill=False, color="black", linewidth=3.2))
        axes.add_patch(Rectangle((left, top), *size, fill=False, color=colour, linewidth=1.8))
        text = names[label]
        if objects.scores is not None:
            text += f" {100 * objects.scores[i]:.0f}"
        at_right = left > 0.55 * width
        axes.text(
            np.clip(right if at_right else left, 0.01 * width, 0.99 * width),
            np.clip(top, 0, 0.9 * height),
            text,
            ha="right" if at_right else "left",
            va="top",
            fontsize=9.5,
            color="black",
            bbox=dict(facecolor=colour, edgecolor="none", pad=1.2, alpha=0.9),
        )


def _grid(images: Sequence[np.ndarray], titles: tuple[str, ...], bottom: float = 0.03):
    """A figure with one row of empty panels a picture, `bottom` inches left free below them."""
    top, gap = 0.32, 0.05  # inches
    panel = (WIDTH - gap * (len(titles) - 1)) / len(titles)
    panel_height = panel * max(image.shape[0] / image.shape[1] for image in images)
    height = top + bottom + len(images) * (panel_height + gap) - gap
    fig = Figure(figsize=(WIDTH, height), dpi=DPI)
    space = dict(wspace=gap / panel, hspace=gap / panel_height)
    axes = fig.subplots(len(images), len(titles), squeeze=False, gridspec_kw=space)
    fig.subplots_adjust(left=0, right=1, bottom=bottom / height, top=1 - top / height)
    for cell in axes.flat:
        cell.set_axis_off()
    for cell, title in zip(axes[0], titles):
        cell.set_title(title, fontsize=13, color=ARM_COLOURS.get(title, INK), pad=5)
    return fig, axes


def _encode(fig: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    options = {"quality": 82, "optimize": True} if kind == "jpeg" else {"optimize": True}
    fig.savefig(buffer, format=kind, pil_kwargs=options, facecolor="white")
    return buffer.getvalue()
