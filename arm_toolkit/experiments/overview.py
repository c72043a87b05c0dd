"""Draws the README's opening image from a finished quickstart: predictions next to the truth, and reconstructions.

Example:
  python -m arm_toolkit.experiments.overview work_dirs/quickstart docs/overview.png

Row 1 shows boxes and masks (Mask R-CNN), row 2 label maps (UperNet), row 3 what the pretrained model predicts. Each
predicted patch takes its mean and standard deviation from the true patch. All images are generated. They are the first
validation images, not selected; no model was trained on them.
"""

import argparse
import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from arm_backbone.checkpoint.writing import replacing
from arm_images.errors import DataError

from ..errors import run_tool
from . import figures
from .detections import found_objects, read_results, read_truth, true_objects
from .files import read_json, read_pixels
from .reconstruction import reconstruct
from .runs import checkpoint_path, config_path
from .style import INK

IMAGES = 2  # per row, each with two panels
MIN_SCORE = 0.5  # detections below it are not drawn
COLOURS = 192  # of the PNG's palette: keeps the file small
# Layout in pixels as shown in a README, which is about 800 pixels wide; the file has SCALE times as many.
SCALE = 2
WIDTH, PANEL, NARROW_GAP, WIDE_GAP = 800, 192, 6, 20
HEADING, CAPTION, MARGIN, LEGEND = 22, 18, 12, 26
ROW = HEADING + CAPTION + PANEL + MARGIN
HEIGHT = 3 * ROW + LEGEND
DPI = 100


def write_overview(folder: Path, path: Path) -> None:
    """Draw the overview of a finished quickstart as a PNG.

    Args:
        folder: work directory of a quickstart. Nothing in it is executed.
        path: the PNG file to write.

    Raises:
        DataError: if the quickstart has not finished.
    """
    results = ("det/predictions.json", "seg/predictions")
    for name in ("shapes/meta.json", "pretrain/last_checkpoint", *results):
        if not (folder / name).exists():
            raise DataError(f"{folder / name} does not exist; finish the quickstart first: bash tools/quickstart.sh")
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=SCALE * DPI, facecolor="white")
    _detections(figure, folder)
    _segmentations(figure, folder)
    _reconstructions(figure, folder)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    image = Image.open(buffer).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    with replacing(path) as partial:
        image.save(partial, format="png", optimize=True)


def _detections(figure: Figure, folder: Path) -> None:
    coco = folder / "shapes/coco"
    truth = read_truth(coco / "annotations/instances_val2017.json")
    found = read_results(folder / "det/predictions.json", truth)
    labels = {category: label for label, category in enumerate(truth.cats)}
    names = [category["name"] for category in truth.cats.values()]
    panels = _row(figure, 0, "Boxes and masks: Mask R-CNN", ("truth", "prediction"))
    for (true_panel, found_panel), image in zip(panels, truth.imgs.values()):
        pixels = read_pixels(coco / "val2017" / image["file_name"])
        objects = found_objects(found[image["id"]], labels, MIN_SCORE)
        for panel, shown in ((true_panel, true_objects(truth, image["id"], labels)), (found_panel, objects)):
            figures.draw_objects(panel, pixels, shown, names, fontsize=8)


def _segmentations(figure: Figure, folder: Path) -> None:
    names = read_json(folder / "shapes/meta.json")["classes"]
    colours = figures.label_colours(len(names))
    panels = _row(figure, 1, "Label maps: UperNet", ("truth", "prediction"))
    truth = sorted((folder / "shapes/ade/annotations/validation").glob("*.png"))
    for pair, path in zip(panels, truth):
        for panel, file in zip(pair, (path, folder / "seg/predictions" / path.name)):
            figures.draw_labels(panel, read_pixels(file), colours)
    options = dict(loc="center", ncols=len(names), frameon=False, fontsize=9, labelcolor=INK)
    middle = 1 - (2 * ROW + LEGEND / 2 - MARGIN / 2) / HEIGHT
    figure.legend(handles=figures.label_handles(names, colours), bbox_to_anchor=(0.5, middle), **options)


def _reconstructions(figure: Figure, folder: Path) -> None:
    run = folder / "pretrain"
    shown = reconstruct(config_path(run), checkpoint_path(run), folder / "shapes/coco/val2017", IMAGES)
    panels = _row(
        figure,
        2,
        "Pretraining: each cluster predicted from those before it",
        ("input", "prediction (means given)"),
    )
    for (input_panel, predicted_panel), image, prediction in zip(panels, shown.images, shown.predictions):
        input_panel.imshow(image)
        predicted_panel.imshow(prediction)
        outline = dict(fill=False, color="white", linewidth=1.2, linestyle=":")
        predicted_panel.add_patch(Rectangle((0, 0), shown.given, shown.given, **outline))


def _row(figure: Figure, row: int, heading: str, captions: tuple[str, str]) -> list[list[Axes]]:
    """The panels of a row below a heading, one pair per image. The legend is between rows 1 and 2 (counted from 0)."""
    top = row * ROW + (LEGEND if row == 2 else 0)
    figure.text(0, 1 - (top + HEADING / 2) / HEIGHT, heading, fontsize=11, weight="bold", va="center", color=INK)
    pairs = []
    for image in range(IMAGES):
        pairs.append([])
        for side, caption in enumerate(captions):
            left = image * (2 * PANEL + NARROW_GAP + WIDE_GAP) + side * (PANEL + NARROW_GAP)
            bottom = HEIGHT - top - HEADING - CAPTION - PANEL
            panel = figure.add_axes((left / WIDTH, bottom / HEIGHT, PANEL / WIDTH, PANEL / HEIGHT))
            panel.set_axis_off()
            panel.set_title(caption, fontsize=9, color=INK, pad=4, loc="left")
            pairs[-1].append(panel)
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="work directory of a finished quickstart")
    parser.add_argument("path", type=Path, metavar="FILE.png", help="image to write")
    args = parser.parse_args()
    write_overview(args.folder, args.path)
    print(f"{args.path}: {args.path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run_tool(main)
