"""The report of the quickstart: what was run, what came out, and what that does not show.

Every number is read from the files that the runs left; a run that is missing shows as a dash. One
list of blocks is written twice: as an HTML page that needs no other file, and as Markdown.
"""

import os
from pathlib import Path

from mmengine.config import Config

from arm_images.errors import DataError

from . import figures as draw
from .page import Block
from .runs import MEASURES, Run, _config, _json, checkpoint_path, class_iou, read_run

PRETRAINED, SCRATCH = draw.ARM_COLOURS
RUNS = (  # of Mask R-CNN and UperNet, for each row of the table
    ("det_pretrained", "seg_pretrained"),
    ("det_scratch", "seg_scratch"),
    (None, "probe_pretrained"),
    (None, "probe_random"),
)
ROWS = dict(zip(draw.ROW_COLOURS, RUNS))
MODELS = ("Mask R-CNN", "UperNet")
COMPARED = {  # what -> measure, run with pretraining, run without
    "Box AP": ("box AP", "det_pretrained", "det_scratch"),
    "Mask AP": ("mask AP", "det_pretrained", "det_scratch"),
    "mIoU": ("mIoU", "seg_pretrained", "seg_scratch"),
    "mIoU on the frozen encoder": ("mIoU", "probe_pretrained", "probe_random"),
}
STARTS = {"pretrained": "from the pretrained weights", "scratch": "from scratch", "random": "from random weights"}
NOISE = 2.0  # points that one seed on some 60 pictures cannot tell apart
SHOWN = 6  # pictures in each grid
MIN_SCORE = 0.5  # of a detection that is drawn


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
    (folder / "report_files").mkdir(exist_ok=True)
    for block in blocks:
        if block.kind == "figure":
            _write(folder / "report_files" / block.name, block.data)
    _write(folder / "report.md", draw.markdown(blocks).encode())
    _write(folder / "report.html", draw.page(blocks).encode())
    return folder / "report.html"


def _write(path: Path, data: bytes) -> None:
    """Write beside the target first: no half file remains."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(data)
    os.replace(partial, path)


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
            f" of {size['size']} × {size['size']} pixels with shapes ({', '.join(meta['instance_classes'])}) that"
            " only outline and texture tell apart."
        )
    if runs["pretrain"].losses:
        text.append(_pretraining(runs["pretrain"]))
    finetuned = [
        f"{model} ({' and '.join(found)})"
        for model, kind in zip((*MODELS, "UperNet on a frozen encoder"), ("det", "seg", "probe"))
        if (found := [STARTS[name.partition("_")[2]] for name in runs if name.startswith(kind) and runs[name].losses])
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
            result.append((what, a, b, judged if _same_budget(runs[with_], runs[without]) else "not comparable"))
    return result


def _same_budget(a: Run, b: Run) -> bool:
    return not (a.losses and b.losses) or a.losses[-1][0] == b.losses[-1][0]


def _verdict(runs: dict[str, Run]) -> str:
    compared = _comparisons(runs)
    if not compared:
        return "There is no finished pair with and without pretraining yet, so no verdict."
    kinds = ("helped", "hurt", "within noise", "not comparable")
    judged = {kind: [what for what, _, _, found in compared if found == kind] for kind in kinds}
    parts = [f"**{kind}**: {', '.join(names)}" for kind, names in judged.items() if names]
    return f"What pretraining did, by measure: {'; '.join(parts)}."


def _results(runs: dict[str, Run], meta: dict) -> list[Block]:
    header = ("", *MEASURES, "training time", "parameters: whole model", "of these backbone")
    rows = []
    for label, names in ROWS.items():
        pair = [runs.get(name, Run(Path())) for name in names]
        points = [run.points(measure) for run, measure in zip((pair[0], *pair), MEASURES)]
        times = [None if run.seconds is None else duration(run.seconds) for run in pair]
        whole, backbone = ([run.parameters and f"{run.parameters[i] / 1e6:.2f} M" for run in pair] for i in (0, 1))
        shown = ["–" if value is None else f"{value:.1f}" for value in points]
        same = len(set(filter(None, backbone))) == 1  # one number for both models
        last = next(filter(None, backbone)) if same else _per_model(backbone)
        rows.append((label, *shown, _per_model(times), _per_model(whole), last))
    note = (
        "AP and mIoU in points out of 100 on the validation pictures; time of the training with its start and its"
        " evaluation; parameters: all tensors of the checkpoints."
    )
    items = tuple(
        (f"{what}: {a:.1f} with pretraining, {b:.1f} without ({_signed(a - b)}): **{judged}**",)
        for what, a, b, judged in _comparisons(runs)
    )
    verdict = [Block("list", rows=items), Block("p", _caveats(runs, meta))] if items else [Block("p", _verdict(runs))]
    table = Block("table", rows=(header, *rows))
    return [Block("h2", "Results"), table, Block("p", note), Block("h2", "Verdict"), *verdict]


def _signed(points: float) -> str:
    return f"{round(points, 1) + 0:+.1f}".replace("-", "−")


def _per_model(cells: list[str | None]) -> str:
    return "\n".join(f"{model} {cell}" for model, cell in zip(MODELS, cells) if cell) or "–"


def _caveats(runs: dict[str, Run], meta: dict) -> str:
    count = f"{meta['parameters']['val']} pictures" if meta else "few pictures"
    steps = [
        (model, *(runs[f"{kind}_{start}"].losses[-1:] for start in ("pretrained", "scratch")))
        for model, kind in zip(MODELS, ("det", "seg"))
    ]
    steps = [(model, a[0][0], b[0][0]) for model, a, b in steps if a and b]
    same = [f"{a} steps of {model}" for model, a, b in steps if a == b]
    unequal = [f"{model} {a} steps with and {b} without pretraining" for model, a, b in steps if a != b]
    text = [
        f"One seed on {count} cannot tell differences under about {NOISE:.0f} points from chance, and a"
        " larger one is still a single observation."
    ]
    if same:
        text.append(f"Scratch was given the same finetuning budget ({', '.join(same)}).")
    if unequal:
        text.append(f"**The finetuning budgets differ** ({'; '.join(unequal)}): no judgement there.")
    seconds = runs["pretrain"].seconds
    took = f" ({duration(seconds)})" if seconds is not None else ""
    text.append(
        f"Pretraining's time{took} came on top: nothing here says that pretraining pays at equal total"
        " time. The frozen probe, where only the head is trained, is the fairest look at what"
        " pretraining learned, because finetuning can make up for a poor start."
    )
    return " ".join(text)


def _curves(runs: dict[str, Run]) -> list[Block]:
    mean = "Mean squared error of the normalised pixels; always guessing a patch's mean gives 1.0."
    sections = (
        ("Pretraining", mean, {PRETRAINED: "pretrain"}, (1.0, "constant predictor")),
        ("Detection", "Loss of Mask R-CNN.", {PRETRAINED: "det_pretrained", SCRATCH: "det_scratch"}, None),
        ("Segmentation", "Loss of UperNet.", {PRETRAINED: "seg_pretrained", SCRATCH: "seg_scratch"}, None),
    )
    text = "Faint: as logged, each a mean over the last steps; strong: a moving average over 5 of these."
    blocks = [Block("h2", "Loss curves"), Block("p", text)]
    for title, text, names, constant in sections:
        curves = {arm: (draw.ARM_COLOURS[arm], runs[name].losses) for arm, name in names.items() if runs[name].losses}
        if curves:
            name, data = f"loss_{title.lower()}.png", draw.loss_curves(curves, constant)
            blocks.append(Block("figure", f"**{title}.** {text}", name=name, data=data))
        else:
            blocks.append(Block("p", f"{title} is left out: there is no log of it."))
    return blocks


def _reconstructions(folder: Path) -> list[Block]:
    run, pictures = folder / "pretrain", folder / "shapes" / "coco" / "val2017"
    config, checkpoint = _config(run), checkpoint_path(run)
    heading = Block("h2", "What pretraining predicts")
    if not (config and checkpoint and pictures.is_dir()):
        return [heading, Block("p", "Left out: there is no finished pretraining, or no validation picture.")]
    shown = draw.reconstruct(config, checkpoint, pictures, SHOWN)
    text = (
        f"The first {len(shown.images)} validation pictures, never trained on. Every cluster of {shown.given} ×"
        f" {shown.given} pixels but the first (dotted) is predicted, each from the true clusters before it. The model"
        " predicts normalised pixels only: each patch is put back with the mean and deviation **of the true patch**,"
        " so coarse brightness comes from the truth. “Patch means” shows what a constant predictor would give with"
        " that help (one mean for all three colours, hence grey). Absolute error: in grey levels of 255, mean over"
        f" the colours. Loss on all {shown.count} validation pictures: {shown.loss:.2f} (whole pictures; training"
        " sees crops)."
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
    rows = [(k, *(f"{v:.1f}" for v in values)) for k, values in iou.items()]
    return [
        heading,
        Block("figure", text, name="segmentation.jpg", data=data),
        Block("p", "IoU of each class in points, from the label maps of all validation pictures:"),
        Block("table", rows=(("", *names), *rows)),
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
