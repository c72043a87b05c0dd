"""Draws the figures of the reports: loss curves, reconstructions, detections and label maps, as PNG or JPEG.

Legend: R images (one per row), H x W pixels each.
"""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from .reconstruction import Reconstruction
from .runs import Objects

# Okabe and Ito's colours, which remain distinct with the common forms of colour blindness: two for the two compared
# starts (pretrained, from scratch), the others for the classes.
ARM_COLOURS = {"AR-pretrained": "#0072B2", "from scratch": "#D55E00"}
ROW_COLOURS = {  # rows of a table: one of the starts, finetuned or as a frozen encoder
    **ARM_COLOURS,
    "frozen encoder, AR-pretrained": ARM_COLOURS["AR-pretrained"],
    "frozen encoder, random": ARM_COLOURS["from scratch"],
}
CLASS_COLOURS = ("#009E73", "#CC79A7", "#F0E442", "#56B4E9", "#E69F00")
BACKGROUND = "#5A5A5A"
INK, FAINT = "#333333", "#888888"
WIDTH = 6.0  # inches; narrow, so that the text is large enough on a phone
DPI = 190


def class_colour(index: int) -> str:
    """Colour of the class with this index, not counting the background; the colours repeat after five."""
    return CLASS_COLOURS[index % len(CLASS_COLOURS)]


def smooth(values: Sequence[float], half: int = 2) -> list[float]:
    """Moving average over `half` values on each side; near the ends the window shrinks symmetrically."""
    spans = [min(half, i, len(values) - 1 - i) for i in range(len(values))]
    return [float(np.mean(values[i - span : i + span + 1])) for i, span in enumerate(spans)]


def loss_curves(
    curves: dict[str, tuple[str, list[tuple[int, float]]]], constant: tuple[float, str] | None = None
) -> bytes:
    """Losses over training steps as PNG: as logged (faint lines) and smoothed (strong lines).

    Args:
        curves: label -> (colour, pairs of step and loss).
        constant: height and label of a dashed line.
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
    """Input, patch means, prediction and absolute error (0..255), one row per image, as JPEG."""
    errors = np.abs(shown.images.astype(float) - shown.predictions).mean(-1)  # (R, H, W)
    top = max(10, 10 * np.ceil(np.percentile(errors, 99.5) / 10))
    titles = ("input", "patch means", "prediction", "absolute error")
    fig, axes = _grid(shown.images, titles, bottom=0.5)
    for row, *panels, error in zip(axes, shown.images, shown.means, shown.predictions, errors):
        for cell, panel in zip(row, panels):
            cell.imshow(panel)
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
    """Images with boxes, masks, class names and scores (percent), one row per image, as JPEG.

    Args:
        images: R arrays (H, W, 3) uint8.
        columns: title -> the objects of each image.
        names: class names.
    """
    fig, axes = _grid(images, tuple(columns))
    for column, objects in enumerate(columns.values()):
        for row, (image, found) in enumerate(zip(images, objects)):
            draw_objects(axes[row][column], image, found, names)
    return _encode(fig, "jpeg")


def segmentations(images: list[np.ndarray], columns: dict[str, list[np.ndarray]], names: list[str]) -> bytes:
    """Images and coloured label maps, one row per image, as JPEG.

    Args:
        images: R arrays (H, W, 3) uint8.
        columns: title -> a label map (H, W) for each image; 0 is ignored (white), k is the k-th name.
        names: class names, background first.
    """
    fig, axes = _grid(images, ("image", *columns), bottom=0.4)
    for row, image in enumerate(images):
        axes[row][0].imshow(image)
        for column, maps in enumerate(columns.values(), start=1):
            draw_labels(axes[row][column], maps[row], len(names))
    fig.legend(handles=label_handles(names), loc="lower center", ncols=4, frameon=False, fontsize=12, labelcolor=INK)
    return _encode(fig, "jpeg")


def label_colours(count: int) -> list[str]:
    """Colours of the labels 1 to `count`: the background first, then the classes."""
    return [BACKGROUND, *map(class_colour, range(count - 1))]


def label_handles(names: list[str]) -> list[Patch]:
    """Legend entries of label maps; the first of `names` is the background."""
    return [Patch(facecolor=colour, label=name) for colour, name in zip(label_colours(len(names)), names)]


def draw_labels(axes: Axes, labels: np.ndarray, count: int) -> None:
    """Draw a label map (H, W) with values from 0 (ignored: white) to `count` into a panel."""
    table = np.array([to_rgb("white"), *map(to_rgb, label_colours(count))])
    axes.imshow(table[labels], interpolation="nearest")


def draw_objects(axes: Axes, image: np.ndarray, objects: Objects, names: list[str], fontsize: float = 9.5) -> None:
    """Draw an image with masks, boxes, class names and scores into a panel."""
    height, width = image.shape[:2]
    shaded = 0.9 * image / 255
    for label, mask in zip(objects.labels, objects.masks):
        shaded[mask] = 0.4 * shaded[mask] + 0.6 * np.array(to_rgb(class_colour(label)))
    axes.imshow(shaded, extent=(0, width, height, 0))
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
            fontsize=fontsize,
            color="black",
            bbox=dict(facecolor=colour, edgecolor="none", pad=1.2, alpha=0.9),
        )


def _grid(images: Sequence[np.ndarray], titles: tuple[str, ...], bottom: float = 0.03):
    """A figure with a row of empty panels for each image, and `bottom` inches of free space below."""
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
