"""How the quickstart's report looks: pictures from the files of the runs (PNG, JPEG), the page in HTML and Markdown.

Legend: R pictures (one a row), H x W pixels each.
"""

import base64
import html
import io
import json
import pickle
import re
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
from PIL import Image
from pycocotools import mask as mask_utils

from arm_backbone.checkpoint import model_state, read_checkpoint
from arm_backbone.load import load_model
from arm_pretrain.data import ImageCrops
from arm_pretrain.targets import patch_statistics, patchify, unpatchify

from .reconstruct import load_images, to_pixels

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
class Block:
    """A part of the report.

    Attributes:
        kind: "h1", "h2", "p", "list", "table" or "figure".
        text: of a heading or paragraph, caption of a figure; `code` and **strong** are marked up.
        rows: of a list (one cell each) or a table (the first is its header; "\\n" breaks a line).
        name, data: file name and bytes of a figure.
    """

    kind: str
    text: str = ""
    rows: tuple[tuple[str, ...], ...] = ()
    name: str = ""
    data: bytes = b""


@dataclass(frozen=True)
class Objects:
    """Instances in one picture.

    Attributes:
        labels: N positions in the list of class names.
        boxes: (N, 4), left, top, right, bottom in pixels.
        masks: N arrays (H, W) bool.
        scores: N values in 0..1, or None for the truth.
    """

    labels: Sequence[int]
    boxes: np.ndarray
    masks: Sequence[np.ndarray]
    scores: Sequence[float] | None = None


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


# --- reading ---


def read_pixels(path: Path) -> np.ndarray:
    """An image file as (H, W, 3) or, for a label map, (H, W) uint8."""
    with Image.open(path) as image:
        return np.asarray(image)


def read_truth(path: Path) -> tuple[list[str], dict[str, tuple[int, Objects]]]:
    """Names of the classes; and file name -> image id and objects, from a COCO file with masks as RLE."""
    content = json.loads(path.read_text())
    order = {category["id"]: i for i, category in enumerate(content["categories"])}
    found: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append(annotation)
    truth = {image["file_name"]: (image["id"], _true_objects(found[image["id"]], order)) for image in content["images"]}
    return [category["name"] for category in content["categories"]], truth


def _true_objects(annotations: list[dict], order: dict[int, int]) -> Objects:
    boxes = np.array([annotation["bbox"] for annotation in annotations], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Objects(
        [order[annotation["category_id"]] for annotation in annotations],
        boxes,
        [mask_utils.decode(annotation["segmentation"]) > 0 for annotation in annotations],
    )


def read_detections(path: Path, min_score: float) -> dict[int, Objects]:
    """Image id -> objects of at least that score, from the pickle of tools/test.py --out.

    Unpickling can execute code: only for a file of your own.
    """
    with path.open("rb") as file:
        samples = pickle.load(file)  # noqa: S301
    return {sample["img_id"]: _found_objects(sample["pred_instances"], min_score) for sample in samples}


def _found_objects(instances: dict, min_score: float) -> Objects:
    scores = np.asarray(instances["scores"], float)
    keep = [int(i) for i in np.argsort(scores, kind="stable") if scores[i] >= min_score]  # best on top
    return Objects(
        [int(instances["labels"][i]) for i in keep],
        np.asarray(instances["bboxes"], float).reshape(-1, 4)[keep],
        [mask_utils.decode(instances["masks"][i]) > 0 for i in keep],
        [float(scores[i]) for i in keep],
    )


@torch.no_grad()
def reconstruct(config: Path, checkpoint: Path, pictures: Path, rows: int) -> Reconstruction:
    """Run a pretrained model on a folder of pictures (resized centre crops) and keep the first rows.

    Args:
        config: of the pretraining, as it lies in its work dir.
    """
    cfg = Config.fromfile(config)
    model = MODELS.build(cfg.model).eval()
    load_model(model, model_state(read_checkpoint(checkpoint)), str(checkpoint))
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


# --- writing ---

STYLE = """
body { max-width: 50rem; margin: 0 auto; padding: 1rem; background: #fff; color: #333; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; font-weight: 600; } h2 { font-size: 1.2rem; font-weight: 600; margin: 2.2rem 0 .6rem; }
h1 + p { background: #f1f4f6; border-radius: .4rem; padding: .8rem 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .4rem .7rem .4rem 0; border-bottom: 1px solid #dcdcd8; text-align: left; vertical-align: top; }
th { font-weight: 600; color: #555; } td { font-variant-numeric: tabular-nums; }
td + td { white-space: nowrap; } td code { white-space: normal; } td:has(code) { min-width: 16rem; }
.dot { display: inline-block; width: .65rem; height: .65rem; border-radius: 50%; margin-right: .4rem; }
code { font-size: .85em; background: #f0f0ec; border-radius: .2rem; padding: .05em .25em; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .88rem; color: #555; margin-top: .4rem; } li { margin: .3rem 0; }
@media print { body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } figure img { width: auto; max-width: 100%; max-height: 19cm; } }
"""


def page(blocks: list[Block]) -> str:
    """The whole HTML page, pictures and style inside; the first block is its title."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(map(_html, blocks))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>{blocks[0].text}</title><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _html(block: Block) -> str:
    text = _inline(block.text)
    match block.kind:
        case "list":
            return "<ul>" + "".join(f"<li>{_inline(row[0])}</li>" for row in block.rows) + "</ul>"
        case "table":
            rows = [_html_row(row, "td" if i else "th") for i, row in enumerate(block.rows)]
            return '<div class="scroll"><table>' + "\n".join(rows) + "</table></div>"
        case "figure":
            kind = "png" if block.name.endswith(".png") else "jpeg"
            source = f"data:image/{kind};base64,{base64.b64encode(block.data).decode()}"
            alt = html.escape(Path(block.name).stem.replace("_", " "))
            return f'<figure><img src="{source}" alt="{alt}"><figcaption>{text}</figcaption></figure>'
        case tag:
            return f"<{tag}>{text}</{tag}>"


def _html_row(row: tuple[str, ...], tag: str) -> str:
    colour = ROW_COLOURS.get(row[0])
    dot = f'<span class="dot" style="background:{colour}"></span>' if colour else ""
    first, *cells = (_inline(cell).replace("\n", "<br>") for cell in row)
    return f"<tr><{tag}>{dot}{first}</{tag}>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _inline(text: str) -> str:
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)


def markdown(blocks: list[Block]) -> str:
    """The same in Markdown, pictures linked from report_files/."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    match block.kind:
        case "list":
            return "\n".join(f"- {row[0]}" for row in block.rows)
        case "table":
            cells = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in block.rows]
            cells.insert(1, ["---"] * len(cells[0]))
            return "\n".join(f"| {' | '.join(row)} |" for row in cells)
        case "figure":
            return f"![{Path(block.name).stem.replace('_', ' ')}](report_files/{block.name})\n\n{block.text}"
        case "h1" | "h2":
            return f"{'#' * int(block.kind[1])} {block.text}"
    return block.text
