"""The part of a report that only pretraining has: loss by position, and what the model predicts."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from arm_images.errors import DataError

from . import charts
from .charts import Line
from .files import read_image
from .page import Figure, Section
from .runs import Run
from .style import series_colour, series_line


def pretraining_section(runs: Sequence[Run]) -> list[Section]:
    """Sections on what was predicted while training, by `ReconstructionHook`."""
    section = Section("What pretraining predicts", [])
    for run in runs:
        section.parts.extend(_positions(run) + _reconstruction(run))
    return [section]


def _positions(run: Run) -> list[Figure]:
    """The loss of each position, first and last logged."""
    found = {name.removeprefix("position/"): points for name, points in run.log.val.items() if "position/" in name}
    if not found:
        return []
    lines = [
        Line(
            label,
            [(n, points[which][1]) for n, points in enumerate(found.values(), 1)],
            series_colour(i),
            series_line(i),
        )
        for i, (which, label) in enumerate(((0, "first logged"), (-1, "last logged")))
    ]
    last = list(found)
    caption = f"**{run.name}: loss by position in the image**, from {last[0]} (1) to {last[-1]} ({len(last)})."
    data = charts.curves(lines, "loss", marked=True, across="position")
    return [Figure("positions.png", data, caption, f"Loss of {len(last)} positions in the image, {run.name}")]


def _reconstruction(run: Run) -> list[Figure | str]:
    """The last figure that the run drew."""
    drawn = run.folder.glob("*/vis_data/vis_image/reconstruction_*.png")
    numbered = [(int(number[1]), path) for path in drawn if (number := re.search(r"_(\d+)\.png$", path.name))]
    if not numbered:
        source = run.checkpoint or f"{run.folder}/CHECKPOINT.pth"
        return [
            f"{run.name} has drawn no reconstructions; draw them with `python tools/reconstruct.py {source} IMAGES`."
        ]
    step, path = max(numbered)
    try:
        data = _jpeg(path)
    except DataError as error:
        return [f"{run.name}: {error}."]
    caption = f"**{run.name}, step {step}:** input, predictions and error of some images (`{path.name}`)."
    return [Figure("reconstruction.jpg", data, caption, f"Images and what {run.name} predicts of them at step {step}")]


def _jpeg(path: Path) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(read_image(path)).save(buffer, format="jpeg", quality=88)
    return buffer.getvalue()
