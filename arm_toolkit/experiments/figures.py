"""Draws the pictures of the reports: reconstructions, detections and label maps, as JPEG.

Legend: R images (one per row), H x W pixels each.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from .detections import Objects
from .style import BACKGROUND, DPI, FAINT, INK, SERIES, WIDTH, WRONG, class_colour, encode, plain

if TYPE_CHECKING:
    from .reconstruction import Reconstruction  # loads models

EXAMPLE_DPI = 130  # an example is shown at half the width of the page


class Panel(NamedTuple):
    """One image of an example: its title, and what draws it."""

    title: str
    draw: Callable[[Axes], None]


def reconstructions(shown: "Reconstruction") -> bytes:
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
    return encode(fig, "jpeg")


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
    return encode(fig, "jpeg")


def segmentations(images: list[np.ndarray], columns: dict[str, list[np.ndarray]], names: list[str]) -> bytes:
    """Images and coloured label maps, one row per image, as JPEG.

    Args:
        images: R arrays (H, W, 3) uint8.
        columns: title -> a label map (H, W) for each image; 0 is ignored (white), k is the k-th name.
        names: class names, background first.
    """
    fig, axes = _grid(images, ("image", *columns), bottom=0.4)
    colours = label_colours(len(names))
    for row, image in enumerate(images):
        axes[row][0].imshow(image)
        for column, maps in enumerate(columns.values(), start=1):
            draw_labels(axes[row][column], maps[row], colours)
    handles = label_handles(names, colours)
    fig.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=12, labelcolor=INK)
    return encode(fig, "jpeg")


def label_colours(count: int) -> list[str]:
    """Colours of the labels 1 to `count`: the background first, then the classes."""
    return [BACKGROUND, *map(class_colour, range(count - 1))]


def label_handles(names: Sequence[str], colours: Sequence[str]) -> list[Patch]:
    """Legend entries of label maps."""
    return [Patch(facecolor=colour, label=plain(name, 22)) for name, colour in zip(names, colours, strict=True)]


def draw_labels(axes: Axes, labels: np.ndarray, colours: Sequence[str]) -> None:
    """Draw a label map (H, W) into a panel: 0 is ignored (white), k has the k-th colour."""
    table = np.array([to_rgb("white"), *map(to_rgb, colours)])
    axes.imshow(table[labels], interpolation="nearest")


def draw_mistakes(axes: Axes, image: np.ndarray, wrong: np.ndarray, ignored: np.ndarray) -> None:
    """Draw an image in grey with the wrong pixels in orange and the ignored ones in white.

    Args:
        image: (H, W, 3) uint8.
        wrong, ignored: (H, W) bool.
    """
    grey = np.repeat(0.35 + 0.55 * image.mean(2, keepdims=True) / 255, 3, axis=2)
    grey[ignored] = 1.0
    grey[wrong] = 0.25 * grey[wrong] + 0.75 * np.array(to_rgb(WRONG))
    axes.imshow(grey, interpolation="nearest")


def draw_probabilities(axes: Axes, names: Sequence[str], values: Sequence[float], true: int | None) -> None:
    """Draw the probabilities (0..1) of the most likely classes as bars, the true class in another colour.

    Args:
        true: index of the true class among the bars, None if it is not among them.
    """
    colours = [SERIES[0] if index == true else FAINT for index in range(len(names))]
    axes.set_axis_on()
    axes.barh(range(len(names)), values, color=colours, height=0.4, align="edge")
    for index, (name, value) in enumerate(zip(names, values)):
        text = f"{plain(name, 24)}  {100 * value:.0f} %"
        axes.text(0, index - 0.08, text, fontsize=11, color=INK, weight="bold" if index == true else "normal")
    axes.set_xlim(0, 1)
    axes.set_ylim(max(len(names), 3) - 0.4, -0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


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
        text = plain(names[label])
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


def example(panels: Sequence[Panel], ratio: float, legend: Sequence[Patch] = ()) -> bytes:
    """Panels of one image, two in a row, as JPEG.

    Args:
        ratio: height of the image by its width.
        legend: entries below the panels.
    """
    title, gap, margin = 0.3, 0.06, 0.28 * -(-len(legend) // 3)  # inches
    rows = -(-len(panels) // 2)
    width = (WIDTH - gap) / 2
    panel_height = width * min(max(ratio, 0.4), 1.6)
    height = rows * (title + panel_height) + margin + gap
    fig = Figure(figsize=(WIDTH, height), dpi=EXAMPLE_DPI)
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        bottom = height - (row + 1) * (title + panel_height)
        axes = fig.add_axes((column * (width + gap) / WIDTH, bottom / height, width / WIDTH, panel_height / height))
        axes.set_axis_off()
        panel.draw(axes)
        axes.set_title(plain(panel.title, 30), fontsize=13, color=INK, pad=5)
    if legend:
        fig.legend(
            handles=list(legend), loc="lower center", ncols=3, frameon=False, fontsize=11, labelcolor=INK,
            columnspacing=1.2, handlelength=1.4,
        )  # fmt: skip
    return encode(fig, "jpeg", EXAMPLE_DPI)


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
        cell.set_title(title, fontsize=13, color=INK, pad=5)
    return fig, axes
