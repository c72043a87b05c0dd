"""Draws the charts of the reports as PNG: curves, precision over recall, classes, confusion matrices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from .style import DPI, FAINT, GRID, INK, SERIES, WIDTH, encode, plain

STEPS = "training step"
NAMED_CLASSES = 24  # a confusion matrix of more has no room for names
NUMBERED_CLASSES = 12  # ... for numbers
_BLUES = LinearSegmentedColormap.from_list("blues", ["#ffffff", SERIES[0], "#00263e"])


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        points: pairs of x and y; y may be nan, which leaves a gap.
        style: of matplotlib.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    style: str = "-"


def smooth(values: Sequence[float], half: int = 2) -> list[float]:
    """Moving average over `half` values on each side; near the ends the window shrinks symmetrically."""
    spans = [min(half, i, len(values) - 1 - i) for i in range(len(values))]
    return [float(np.mean(values[i - span : i + span + 1])) for i, span in enumerate(spans)]


def loss_curves(lines: Sequence[Line], constant: tuple[float, str] | None = None) -> bytes:
    """Losses over training steps: as logged (faint lines) and smoothed (strong lines).

    Args:
        constant: height and label of a dashed line.
    """
    fig, axes = _chart(2.9, STEPS, "loss")
    for line in lines:
        steps, losses = zip(*line.points)
        axes.plot(steps, losses, color=line.colour, alpha=0.3, linewidth=1.2)
        axes.plot(steps, smooth(losses), line.style, color=line.colour, linewidth=2.2, label=plain(line.label))
    if constant is not None:
        axes.axhline(constant[0], color=FAINT, linestyle="--", linewidth=1.2, label=constant[1])
    _legend(axes, len(lines) + (constant is not None))
    return encode(fig, "png")


def curves(lines: Sequence[Line], what: str, marked: bool = False, across: str = STEPS) -> bytes:
    """Values as logged.

    Args:
        what: title of the vertical axis.
        marked: mark each value, for curves of few values.
        across: title of the horizontal axis.
    """
    fig, axes = _chart(2.9, across, what)
    for line in lines:
        marker = dict(marker="o", markersize=5) if marked else {}
        axes.plot(*zip(*line.points), line.style, color=line.colour, linewidth=2, label=plain(line.label), **marker)
    _legend(axes, len(lines))
    return encode(fig, "png")


def precision_recall(lines: Sequence[Line]) -> bytes:
    """Precision over recall, both in percent."""
    fig, axes = _chart(4.2, "recall (%)", "precision (%)")
    for line in lines:
        axes.plot(*zip(*line.points), line.style, color=line.colour, linewidth=2, label=plain(line.label))
    axes.set_xlim(-1, 101)
    axes.set_ylim(-1, 103)
    _legend(axes, len(lines))
    return encode(fig, "png")


def classes(names: Sequence[str], columns: Sequence[Line]) -> bytes:
    """A row for each class, with a dot for each run at its value (0..100).

    Args:
        columns: one for each run; its points are pairs of the class's index and the value.
    """
    legend = 0.35 if len(columns) > 1 else 0
    height = 0.75 + legend + 0.28 * len(names)
    fig = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = fig.add_subplot()
    many = len(columns)
    for number, line in enumerate(columns):
        offset = 0.0 if many == 1 else 0.36 * (number / (many - 1) - 0.5)
        where = [(value, index + offset) for index, value in line.points if np.isfinite(value)]
        if not where:
            continue
        if many == 1:
            axes.hlines([y for _, y in where], 0, [x for x, _ in where], color=line.colour, linewidth=2, alpha=0.4)
        axes.plot(*zip(*where), "o", color=line.colour, markersize=6, label=plain(line.label))
    axes.set_yticks(range(len(names)), [plain(name, 28) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-1, 101)
    _dress(axes, "points", None)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    if many > 1:
        fig.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=11, labelcolor=INK)
    return encode(fig, "png")


def confusion(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> bytes:
    """A confusion matrix (R, K): what share of each row falls into each column, as shades and in percent."""
    totals = counts.sum(1, keepdims=True)
    shares = 100 * np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    size = len(columns)
    named, numbered = size <= NAMED_CLASSES, size <= NUMBERED_CLASSES
    text = float(np.clip(11 - 0.22 * max(0, size - 6), 6.5, 11))
    height = min(WIDTH, 1.4 + 0.55 * len(rows))
    fig = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = fig.add_subplot()
    axes.imshow(shares, cmap=_BLUES, vmin=0, vmax=100, interpolation="nearest", aspect="auto")
    if numbered:
        for row, column in zip(*np.nonzero(counts)):
            value = shares[row, column]
            ink = "white" if value > 32 else INK
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=text, color=ink)
    if named:
        names = [plain(name, 16) for name in columns]
        axes.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(rows)), [plain(name, 16) for name in rows])
    axes.tick_params(labelsize=text, colors=INK, length=0 if named else 3)
    axes.set_xlabel("predicted", fontsize=12, color=INK)
    axes.set_ylabel("truth", fontsize=12, color=INK)
    axes.spines[:].set_color("#bbbbbb")
    return encode(fig, "png")


def _chart(height: float, across: str, up: str) -> tuple[Figure, Axes]:
    fig = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = fig.add_subplot()
    _dress(axes, across, up)
    return fig, axes


def _dress(axes: Axes, across: str, up: str | None) -> None:
    axes.set_xlabel(across, fontsize=12, color=INK)
    if up is not None:
        axes.set_ylabel(up, fontsize=12, color=INK)
    axes.tick_params(labelsize=11, colors=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")


def _legend(axes: Axes, count: int) -> None:
    """Draw a legend inside the axes, or above them if there are many lines. A single line gets none."""
    if count < 2:
        return
    if count <= 3:
        axes.legend(frameon=False, fontsize=12, labelcolor=INK)
    else:
        axes.figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=10, labelcolor=INK)
