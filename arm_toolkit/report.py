"""The report of the quickstart: what was run, what came out, and what that does not show.

Every number is read from the files that the runs left; a run that is missing shows as a dash. One
list of blocks is written twice: as an HTML page that needs no other file, and as Markdown.
"""

import base64
import html
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mmengine.config import Config
from torch import Tensor

from arm_backbone.checkpoint import model_state, read_checkpoint

from . import draw
from .errors import DataError

PRETRAINED, SCRATCH = draw.ARM_COLOURS
ROWS = {  # row of the table -> its runs of Mask R-CNN and UperNet
    PRETRAINED: ("det_pretrained", "seg_pretrained"),
    SCRATCH: ("det_scratch", "seg_scratch"),
    f"frozen encoder, {PRETRAINED}": (None, "probe_pretrained"),
    "frozen encoder, random": (None, "probe_random"),
}
ROW_COLOURS = dict(zip(ROWS, 2 * list(draw.ARM_COLOURS.values())))
MODELS = ("Mask R-CNN", "UperNet")
MEASURES = {"box AP": "coco/bbox_mAP", "mask AP": "coco/segm_mAP", "mIoU": "mIoU"}
COMPARED = {  # what -> measure, run with pretraining, run without
    "Box AP": ("box AP", "det_pretrained", "det_scratch"),
    "Mask AP": ("mask AP", "det_pretrained", "det_scratch"),
    "mIoU": ("mIoU", "seg_pretrained", "seg_scratch"),
    "mIoU on the frozen encoder": ("mIoU", "probe_pretrained", "probe_random"),
}
NOISE = 2.0  # points that one seed on some 60 pictures cannot tell apart
SHOWN = 6  # pictures in each grid
MIN_SCORE = 0.5  # of a detection that is drawn


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
class Run:
    """One training and its evaluation; what is not there is None or empty.

    Attributes:
        metrics: AP as a fraction and mIoU in percent, as tools/test.py writes them.
        seconds: wall time of the training.
        parameters: number of values in the checkpoint, of the whole model and of its backbone.
        losses: pairs of step and loss.
    """

    folder: Path
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    parameters: tuple[int, int] | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)

    def points(self, measure: str) -> float | None:
        """A measure of `MEASURES` in points (0..100), rounded as it is shown."""
        value = self.metrics.get(MEASURES[measure])
        if value is None or not value >= 0:  # COCO writes -1 for "undefined"
            return None
        return round(value if measure == "mIoU" else 100 * value, 1)


def write_report(folder: str | Path) -> Path:
    """Write report.html, report.md and report_files/ from the runs in `folder`.

    Args:
        folder: of tools/quickstart.sh, from a run of your own: its predictions.pkl is unpickled.

    Returns:
        the path of report.html.

    Raises:
        DataError: if the folder does not exist.
        CheckpointError: if a checkpoint in it is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; make it with: bash tools/quickstart.sh")
    steps = _json(folder / "steps.json")
    meta = _json(folder / "shapes" / "meta.json")
    names = ["pretrain", *(name for pair in ROWS.values() for name in pair if name)]
    runs = {name: read_run(folder / name, steps) for name in names}
    blocks = [
        Block("h1", "ARM quickstart"),
        Block("p", _summary(runs, steps, meta)),
        *_results(runs, meta),
        *_curves(runs),
        *_reconstructions(folder),
        *_detections(folder),
        *_segmentations(folder, meta),
        *_steps(steps),
        *_next(),
    ]
    _write_markdown(folder, blocks)
    path = folder / "report.html"
    _write(path, _page(blocks).encode())
    return path


# --- reading ---


def read_run(folder: Path, steps: dict) -> Run:
    """What a training left in its work dir; `steps` is the content of steps.json."""
    results = sorted((folder / "test").glob("*/*.json"))
    path = checkpoint_path(folder)
    return Run(
        folder,
        metrics=_json(results[-1]) if results else {},
        seconds=next((s["seconds"] for s in steps.get("steps", []) if s["name"] == folder.name), None),
        parameters=count_parameters(model_state(read_checkpoint(path))) if path else None,
        losses=read_losses(folder),
    )


def checkpoint_path(folder: Path) -> Path | None:
    """The last checkpoint of a work dir, also if the dir has been moved; None without one."""
    last = folder / "last_checkpoint"
    path = folder / Path(last.read_text().strip()).name if last.is_file() else None
    return path if path and path.is_file() else None


def count_parameters(state: dict[str, Tensor]) -> tuple[int, int]:
    """Number of values in all tensors of a model, and in those of its backbone."""
    backbone = sum(tensor.numel() for key, tensor in state.items() if key.startswith("backbone."))
    return sum(tensor.numel() for tensor in state.values()), backbone


def read_losses(folder: Path) -> list[tuple[int, float]]:
    """Pairs of step and loss; a training that was resumed replaces what it did again."""
    losses: dict[int, float] = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        lines = [line for line in lines if "loss" in line]
        if lines:
            losses = {step: loss for step, loss in losses.items() if step < lines[0]["step"]}
            losses |= {line["step"]: line["loss"] for line in lines}
    return sorted(losses.items())


def class_iou(predictions: Path, truth: Path, classes: int) -> np.ndarray | None:
    """IoU in percent of each class over all pictures, (classes,), nan for one that is absent.

    Args:
        predictions, truth: folders of label maps (PNG) of the same names; k is the k-th class, 0
            in the truth is ignored.

    Returns:
        None if there is no truth, or a picture has no prediction.
    """
    files = sorted(truth.glob("*.png"))
    if not files or not all((predictions / file.name).is_file() for file in files):
        return None
    confusion = np.zeros((classes + 1, classes + 1), dtype=np.int64)  # truth, prediction
    for file in files:
        pair = draw.read_pixels(file).astype(np.int64) * (classes + 1)
        pair += draw.read_pixels(predictions / file.name)
        confusion += np.bincount(pair.ravel(), minlength=confusion.size).reshape(confusion.shape)
    confusion = confusion[1:]
    hits = confusion[:, 1:].diagonal()
    union = confusion.sum(1) + confusion[:, 1:].sum(0) - hits
    return 100 * hits / np.where(union, union, np.nan)


def _json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def _config(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.py"))), None)


# --- sections ---


def duration(seconds: float) -> str:
    """Seconds in words, e.g. "12 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _summary(runs: dict[str, Run], steps: dict, meta: dict) -> str:
    if not any(run.losses for run in runs.values()):
        return "Nothing to report yet: no training has left a log in this folder."
    text = []
    if meta:
        size = meta["parameters"]
        text.append(
            f"The data are generated: {size['train']} training and {size['val']} validation pictures"
            f" of {size['size']} × {size['size']} pixels with {', '.join(meta['instance_classes'])},"
            " which only outline and texture tell apart."
        )
    if runs["pretrain"].losses:
        text.append(_pretraining(runs["pretrain"]))
    finetuned = [
        f"{model} ({' and '.join(found)})"
        for model, kind in zip((*MODELS, "UperNet on a frozen encoder"), ("det", "seg", "probe"))
        if (found := [_start(name) for name in runs if name.startswith(kind) and runs[name].losses])
    ]
    if finetuned:
        text.append(f"With labels, these were trained: {', '.join(finetuned)}.")
    if steps.get("steps"):
        total = duration(sum(step["seconds"] for step in steps["steps"]))
        text.append(
            f"On {steps['machine']}, the steps add up to {total}, and the last call took"
            f" {duration(steps['total_seconds'])} (some steps run side by side, finished ones are not repeated)."
        )
    return " ".join([*text, _verdict(runs)])


def _start(name: str) -> str:
    return {"pretrained": "from the pretrained weights", "scratch": "from scratch"}.get(
        name.partition("_")[2], "random"
    )


def _pretraining(run: Run) -> str:
    config = _config(run.folder)
    arch = Config.fromfile(config).model.arch if config else None
    size = f" ({arch['embed_dims']} wide, {arch['num_layers']} blocks)" if isinstance(arch, dict) else ""
    took = f" in {duration(run.seconds)}" if run.seconds is not None else ""
    (_, first), (last_step, last) = run.losses[0], run.losses[-1]
    return (
        f"First a small ARM{size} learned, without labels, to predict the next part of a training"
        f" picture from the parts before: {last_step} steps{took}, loss {first:.2f} when first logged"
        f" and {last:.2f} at the end, where guessing each patch's mean gives 1.00."
    )


def _comparisons(runs: dict[str, Run]) -> list[tuple[str, float, float, str]]:
    """What was compared, points with and without pretraining, and the judgement."""
    result = []
    for what, (measure, with_, without) in COMPARED.items():
        a, b = runs[with_].points(measure), runs[without].points(measure)
        if a is not None and b is not None:
            gain = round(a - b, 1)
            judged = "within noise" if abs(gain) < NOISE else "helped" if gain > 0 else "hurt"
            result.append((what, a, b, judged))
    return result


def _verdict(runs: dict[str, Run]) -> str:
    compared = _comparisons(runs)
    if not compared:
        return "There is no finished pair with and without pretraining yet, so no verdict."
    judged = {kind: [c[0] for c in compared if c[3] == kind] for kind in ("helped", "hurt", "within noise")}
    parts = [f"**{kind}**: {', '.join(names)}" for kind, names in judged.items() if names]
    return f"What pretraining did, by measure: {'; '.join(parts)}."


def _results(runs: dict[str, Run], meta: dict) -> list[Block]:
    header = ("", *MEASURES, "training time", "parameters: whole model", "of these backbone")
    rows = []
    for label, names in ROWS.items():
        pair = [runs.get(name, Run(Path())) for name in names]
        det, seg = pair
        points = [run.points(measure) for run, measure in zip((det, det, seg), MEASURES)]
        cells = [
            [duration(run.seconds) if run.seconds is not None else None for run in pair],
            *([f"{run.parameters[i] / 1e6:.2f} M" if run.parameters else None for run in pair] for i in (0, 1)),
        ]
        shown = ["–" if value is None else f"{value:.1f}" for value in points]
        rows.append((label, *shown, *map(_per_model, cells)))
    blocks = [
        Block("h2", "Results"),
        Block("table", rows=(header, *rows)),
        Block(
            "p",
            "AP and mIoU in points out of 100 on the validation pictures; time of the training with its"
            " start and its evaluation; parameters counted from the checkpoints.",
        ),
        Block("h2", "Verdict"),
    ]
    items = [
        (f"{what}: {a:.1f} with pretraining, {b:.1f} without ({round(a - b, 1) + 0:+.1f}): **{judged}**",)
        for what, a, b, judged in _comparisons(runs)
    ]
    if not items:
        return [*blocks, Block("p", _verdict(runs))]
    return [*blocks, Block("list", rows=tuple(items)), Block("p", _caveats(runs, meta))]


def _per_model(cells: list[str | None]) -> str:
    named = [f"{model} {cell}" for model, cell in zip(MODELS, cells) if cell]
    return "\n".join(named) or "–"


def _caveats(runs: dict[str, Run], meta: dict) -> str:
    count = f"{meta['parameters']['val']} pictures" if meta else "few pictures"
    budgets, unequal = [], []
    for model, kind in zip(MODELS, ("det", "seg")):
        a, b = (runs[f"{kind}_{start}"].losses for start in ("pretrained", "scratch"))
        if a and b:
            same = a[-1][0] == b[-1][0]
            budgets += [f"{a[-1][0]} steps of {model}"] if same else []
            unequal += [] if same else [f"{model} {a[-1][0]} steps with and {b[-1][0]} without pretraining"]
    text = [
        f"One seed on {count} cannot tell differences under about {NOISE:.0f} points from chance, and a"
        " larger one is still a single observation."
    ]
    if budgets:
        text.append(f"Scratch was given the same finetuning budget ({', '.join(budgets)}).")
    if unequal:
        text.append(f"**The finetuning budgets differ** ({'; '.join(unequal)}): that is no fair comparison.")
    seconds = runs["pretrain"].seconds
    took = f" ({duration(seconds)})" if seconds is not None else ""
    text.append(
        f"Pretraining's time{took} came on top: nothing here says that pretraining pays at equal total"
        " time. The frozen probe, where only the head is trained, is the fairest look at what"
        " pretraining learned, because finetuning can make up for a poor start."
    )
    return " ".join(text)


def _curves(runs: dict[str, Run]) -> list[Block]:
    blue = draw.ARM_COLOURS[PRETRAINED]
    blocks = [Block("h2", "Loss curves")]
    if losses := runs["pretrain"].losses:
        data = draw.loss_curves({"ARM": (blue, losses)}, (1.0, "constant predictor"))
        text = "**Pretraining.** Mean squared error of the normalised pixels; always guessing a patch's mean gives 1.0."
        blocks.append(Block("figure", text, name="loss_pretraining.png", data=data))
    else:
        blocks.append(Block("p", "Pretraining is left out: there is no log of it."))
    for task, model, kind in zip(("Detection", "Segmentation"), MODELS, ("det", "seg")):
        curves = {
            label: (colour, runs[f"{kind}_{start}"].losses)
            for (label, colour), start in zip(draw.ARM_COLOURS.items(), ("pretrained", "scratch"))
            if runs[f"{kind}_{start}"].losses
        }
        if curves:
            text = f"**{task}.** Training loss of {model}, all its terms together."
            data = draw.loss_curves(curves)
            blocks.append(Block("figure", text, name=f"loss_{task.lower()}.png", data=data))
        else:
            blocks.append(Block("p", f"{task} is left out: there is no log of it."))
    if len(blocks) > 1:
        text = "Faint: as logged, each a mean over the last steps; strong: a moving average over 5 of these."
        blocks.append(Block("p", text))
    return blocks


def _reconstructions(folder: Path) -> list[Block]:
    run, pictures = folder / "pretrain", folder / "shapes" / "coco" / "val2017"
    config, checkpoint = _config(run), checkpoint_path(run)
    heading = Block("h2", "What pretraining predicts")
    if not (config and checkpoint and pictures.is_dir()):
        return [heading, Block("p", "Left out: there is no finished pretraining, or no validation picture.")]
    shown = draw.reconstruct(config, checkpoint, pictures, SHOWN)
    text = (
        f"The first {len(shown.images)} validation pictures, never trained on. Every cluster of"
        f" {shown.given} × {shown.given} pixels but the first (dotted) is predicted, each from the true"
        " clusters before it. The model predicts normalised pixels only: each patch is put back with"
        " the mean and deviation **of the true patch**, so coarse brightness comes from the truth."
        " “Patch means” shows what a constant predictor would give with that help. Absolute"
        " error: in grey levels of 255, mean over the colours. Loss on all"
        f" {shown.count} validation pictures: {shown.loss:.2f}."
    )
    data = draw.reconstructions(shown)
    return [heading, Block("figure", text, name="reconstructions.jpg", data=data)]


def _detections(folder: Path) -> list[Block]:
    coco, heading = folder / "shapes" / "coco", Block("h2", "Detection")
    files = {
        label: folder / f"det_{start}" / "predictions.pkl"
        for label, start in zip(draw.ARM_COLOURS, ("pretrained", "scratch"))
    }
    found = {k: draw.read_detections(p, MIN_SCORE) for k, p in files.items() if p.is_file()}
    annotations = coco / "annotations" / "instances_val2017.json"
    if not found or not annotations.is_file():
        return [heading, Block("p", "Left out: there are no predictions of a detector.")]
    names, truth = draw.read_truth(annotations)
    truth = dict(list(truth.items())[:SHOWN])
    images = [draw.read_pixels(coco / "val2017" / name) for name in truth]
    columns = {"truth": [objects for _, objects in truth.values()]}
    for label, objects in found.items():
        columns[label] = [objects[number] for number, _ in truth.values()]
    text = (
        f"The first {len(images)} validation pictures, not chosen. Objects with a score of at least"
        f" {MIN_SCORE}; the number behind a class is the score in percent.{_missing(files, found)}"
    )
    data = draw.detections(images, columns, names)
    return [heading, Block("figure", text, name="detection.jpg", data=data)]


def _segmentations(folder: Path, meta: dict) -> list[Block]:
    ade, heading = folder / "shapes" / "ade", Block("h2", "Segmentation")
    truth = ade / "annotations" / "validation"
    names = meta.get("classes", [])
    folders = {label: folder / seg / "predictions" for label, (_, seg) in ROWS.items()}
    iou = {k: class_iou(path, truth, len(names)) for k, path in folders.items()}
    iou = {k: values for k, values in iou.items() if values is not None}
    if not iou:
        return [heading, Block("p", "Left out: there are no predictions of a segmenter.")]
    files = sorted(truth.glob("*.png"))[:SHOWN]
    images = [draw.read_pixels(ade / "images" / "validation" / f"{file.stem}.jpg") for file in files]
    columns = {"truth": truth} | {k: folders[k] for k in draw.ARM_COLOURS if k in iou}
    maps = {k: [draw.read_pixels(path / file.name) for file in files] for k, path in columns.items()}
    text = f"The first {len(files)} validation pictures, not chosen.{_missing(draw.ARM_COLOURS, iou)}"
    data = draw.segmentations(images, maps, names)
    rows = [(k, *(f"{v:.1f}" for v in values), f"{np.nanmean(values):.1f}") for k, values in iou.items()]
    return [
        heading,
        Block("figure", text, name="segmentation.jpg", data=data),
        Block("p", "IoU of each class in points, from the label maps of all validation pictures:"),
        Block("table", rows=(("", *names, "mean"), *rows)),
    ]


def _missing(wanted: dict, found: dict) -> str:
    names = [name for name in draw.ARM_COLOURS if name in wanted and name not in found]
    return f" Without predictions, so left out: {', '.join(names)}." if names else ""


def _steps(steps: dict) -> list[Block]:
    heading = Block("h2", "The steps")
    if not steps.get("steps"):
        return [heading, Block("p", "Left out: there is no steps.json.")]
    rows = [(s["name"], duration(s["seconds"]), f"`{s['command']}`") for s in steps["steps"]]
    versions = ", ".join(f"{name} {version}" for name, version in steps.get("versions", {}).items())
    note = "`@FOLDER` stands for the newest checkpoint of that folder. " if "@" in str(rows) else ""
    note += "Steps that ran side by side slowed each other. " + (f"Versions: {versions}." if versions else "")
    return [heading, Block("table", rows=(("step", "time", "command"), *rows)), Block("p", note.strip())]


def _next() -> list[Block]:
    items = (
        "Your own images: `python tools/pretrain.py --model arm_tiny --data IMAGES --epochs 20"
        " --batch-size 32`, where IMAGES is a folder of pictures.",
        "COCO, on 8 GPUs: `tools/dist_train.sh det_configs/mask_rcnn_arm_b.py 8`.",
        "ADE20K, on 8 GPUs: `tools/dist_train.sh seg_configs/upernet_arm_b.py 8`.",
    )
    return [Block("h2", "Where to go next"), Block("list", rows=tuple((item,) for item in items))]


# --- writing ---

STYLE = """
body { max-width: 50rem; margin: 0 auto; padding: 1rem; background: #fcfcfa; color: #333; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; font-weight: 600; } h2 { font-size: 1.2rem; font-weight: 600; margin: 2.2rem 0 .6rem; }
h1 + p { background: #f1f4f6; border-radius: .4rem; padding: .8rem 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .4rem .7rem .4rem 0; border-bottom: 1px solid #dcdcd8; text-align: left; vertical-align: top; }
th { font-weight: 600; color: #555; } td:first-child { white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
.dot { display: inline-block; width: .65rem; height: .65rem; border-radius: 50%; margin-right: .4rem; }
code { font-size: .85em; background: #f0f0ec; border-radius: .2rem; padding: .05em .25em; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .88rem; color: #555; margin-top: .4rem; } li { margin: .3rem 0; }
@media print { body { max-width: none; padding: 0; background: none; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } figure img { width: auto; max-width: 100%; max-height: 22cm; } }
"""


def _page(blocks: list[Block]) -> str:
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


def _write_markdown(folder: Path, blocks: list[Block]) -> None:
    pictures = folder / "report_files"
    pictures.mkdir(exist_ok=True)
    for block in blocks:
        if block.kind == "figure":
            _write(pictures / block.name, block.data)
    _write(folder / "report.md", ("\n\n".join(map(_markdown, blocks)) + "\n").encode())


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


def _write(path: Path, data: bytes) -> None:
    """Write beside the target first: no half file remains."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(data)
    os.replace(partial, path)
