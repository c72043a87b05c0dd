"""Writes the quickstart's report: what was run, the results, and what they do not show.

All numbers come from files in the work directories; a missing result is shown as a dash. The report is written as an
HTML page that needs no other file, and as Markdown.
"""

from pathlib import Path

from arm_backbone.checkpoint.writing import replacing
from arm_images.errors import DataError

from . import charts, figures
from .detections import found_objects, read_results, read_truth, true_objects
from .files import read_json, read_pixels
from .page import Figure, Section, Table, duration, render
from .reconstruction import reconstruct
from .runs import Run, checkpoint_path, config_path, read_config, read_run
from .segmentation_scores import class_iou

MEASURES = ("box AP", "mask AP", "mIoU")
PRETRAINED, SCRATCH = figures.ARM_COLOURS
RUNS = (  # for each row of the results: work directories of Mask R-CNN and UperNet
    ("det_pretrained", "seg_pretrained"),
    ("det_scratch", "seg_scratch"),
    (None, "probe_pretrained"),
    (None, "probe_random"),
)
ROWS = dict(zip(figures.ROW_COLOURS, RUNS))
MODELS = ("Mask R-CNN", "UperNet")
COMPARED = {  # what is compared -> measure, run with pretraining, run without
    "Box AP": ("box AP", "det_pretrained", "det_scratch"),
    "Mask AP": ("mask AP", "det_pretrained", "det_scratch"),
    "mIoU": ("mIoU", "seg_pretrained", "seg_scratch"),
    "mIoU on the frozen encoder": ("mIoU", "probe_pretrained", "probe_random"),
}
STARTS = {"pretrained": "from the pretrained weights", "scratch": "from scratch", "random": "from random weights"}
NOISE = 2.0  # points; with one seed and about 60 images, smaller differences can be chance
SHOWN = 6  # images in each figure
MIN_SCORE = 0.5  # detections below it are not drawn


def write_quickstart_report(folder: str | Path) -> Path:
    """Write report.html, report.md and report_files/ from the runs in `folder`.

    Args:
        folder: work directory of a quickstart. Nothing in it is executed.

    Returns:
        path of report.html.

    Raises:
        DataError: if the folder does not exist, or a file of results in it is incomplete.
        CheckpointError: if a checkpoint in it is broken.
        ConfigError: if a configuration in it is more than values.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; make it with: bash tools/quickstart.sh")
    steps = read_json(folder / "steps.json")
    meta = read_json(folder / "shapes" / "meta.json")
    names = ["pretrain", *(name for pair in ROWS.values() for name in pair if name)]
    seconds = {step["name"]: step["seconds"] for step in steps.get("steps", [])}
    runs = {name: read_run(folder / name, seconds.get(name)) for name in names}
    summary = _summary(runs, steps, meta)
    sections = [
        *_results(runs, meta),
        _curves(runs),
        _reconstructions(folder),
        _detections(folder),
        _segmentations(folder, meta),
        _steps(steps),
        _next_steps(),
    ]
    (folder / "report_files").mkdir(exist_ok=True)
    for part in (part for section in sections for part in section.parts if isinstance(part, Figure)):
        with replacing(folder / "report_files" / part.name) as partial:
            partial.write_bytes(part.data)
    for suffix in ("md", "html"):
        with replacing(folder / f"report.{suffix}") as partial:
            partial.write_text(render(f"report.{suffix}.j2", "ARM quickstart", summary, sections))
    return folder / "report.html"


def _summary(runs: dict[str, Run], steps: dict, meta: dict) -> list[str]:
    if not any(run.losses for run in runs.values()):
        return ["Nothing to report yet: this folder has no training log."]
    paragraphs = [_effect(runs)]
    if meta:
        size = meta["parameters"]
        paragraphs.append(
            f"**Data.** Generated: {size['train']} training and {size['val']} validation images of {size['size']} ×"
            f" {size['size']} pixels. Their shapes ({', '.join(meta['instance_classes'])}) differ only in outline and"
            " texture."
        )
    if runs["pretrain"].losses:
        paragraphs.append(_pretraining(runs["pretrain"]))
    finetuned = [
        f"{model} ({' and '.join(found)})"
        for model, kind in zip((*MODELS, "UperNet on a frozen encoder"), ("det", "seg", "probe"))
        if (found := [STARTS[name.partition("_")[2]] for name in runs if name.startswith(kind) and runs[name].losses])
    ]
    if finetuned:
        paragraphs.append(f"**Finetuning.** Trained with labels: {', '.join(finetuned)}.")
    if steps.get("steps"):
        total = duration(sum(step["seconds"] for step in steps["steps"]))
        paragraphs.append(
            f"**Time.** On {steps['machine']}, all steps together take {total}. The last run took"
            f" {duration(steps['total_seconds'])}: some steps run side by side, and finished steps are not repeated."
        )
    return paragraphs


def _pretraining(run: Run) -> str:
    arch = read_config(run.folder).get("model", {}).get("arch")
    size = f" ({arch['embed_dims']} channels, {arch['num_layers']} blocks)" if isinstance(arch, dict) else ""
    took = f" in {duration(run.seconds)}" if run.seconds is not None else ""
    (_, first), (last_step, last) = run.losses[0], run.losses[-1]
    return (
        f"**Pretraining.** A small ARM{size} learned without labels to predict each part of an image from the parts"
        f" before it: {last_step} steps{took}. Its loss was {first:.2f} when first logged and {last:.2f} at the end;"
        " predicting each patch's mean gives 1.00."
    )


def _comparisons(runs: dict[str, Run]) -> list[tuple[str, float, float, str]]:
    """For each comparison: its name, the points with and without pretraining, and the judgement."""
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


def _effect(runs: dict[str, Run]) -> str:
    compared = _comparisons(runs)
    if not compared:
        return "There is no verdict yet: no measure has a result both with and without pretraining."
    kinds = ("helped", "hurt", "within noise", "not comparable")
    judged = {kind: [what for what, _, _, found in compared if found == kind] for kind in kinds}
    parts = [f"**{kind}**: {', '.join(names)}" for kind, names in judged.items() if names]
    return f"**Result.** Effect of pretraining on each measure: {'; '.join(parts)}."


def _results(runs: dict[str, Run], meta: dict) -> list[Section]:
    columns = ("", *MEASURES, "training time", "parameters of the model", "of the backbone")
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
        "AP and mIoU are points out of 100 on the validation images. Training time includes start-up and evaluation."
        " Parameters are all tensors of the checkpoint."
    )
    verdict = [
        f"{what}: {a:.1f} with pretraining, {b:.1f} without ({_signed(a - b)}): **{judged}**"
        for what, a, b, judged in _comparisons(runs)
    ]
    return [
        Section("Results", [Table(columns, rows, figures.ROW_COLOURS), note]),
        Section("Verdict", [verdict, _caveats(runs, meta)] if verdict else [_effect(runs)]),
    ]


def _signed(points: float) -> str:
    return f"{round(points, 1) + 0:+.1f}".replace("-", "−")


def _per_model(cells: list[str | None]) -> str:
    return "\n".join(f"{model} {cell}" for model, cell in zip(MODELS, cells) if cell) or "–"


def _caveats(runs: dict[str, Run], meta: dict) -> str:
    count = f"{meta['parameters']['val']} images" if meta else "few images"
    steps = [
        (model, *(runs[f"{kind}_{start}"].losses[-1:] for start in ("pretrained", "scratch")))
        for model, kind in zip(MODELS, ("det", "seg"))
    ]
    steps = [(model, a[0][0], b[0][0]) for model, a, b in steps if a and b]
    same = [f"{a} steps of {model}" for model, a, b in steps if a == b]
    unequal = [f"{model} {a} steps with and {b} without pretraining" for model, a, b in steps if a != b]
    text = [
        f"With one seed and {count}, a difference below about {NOISE:.0f} points cannot be told from chance, and a"
        " larger one is still a single observation."
    ]
    if same:
        text.append(f"Both starts had the same finetuning budget ({', '.join(same)}).")
    if unequal:
        text.append(f"**The finetuning budgets differ** ({'; '.join(unequal)}), so these measures are not judged.")
    seconds = runs["pretrain"].seconds
    took = f" ({duration(seconds)})" if seconds is not None else ""
    text.append(
        f"The time of pretraining{took} comes on top: these results do not show that pretraining pays off at equal"
        " total time. The frozen encoder, where only the head is trained, is the fairest test of what pretraining"
        " learned, because finetuning can make up for a poor start."
    )
    return " ".join(text)


def _curves(runs: dict[str, Run]) -> Section:
    mean = "Mean squared error of the normalized pixels; predicting each patch's mean gives 1.0."
    curves = (
        ("Pretraining", mean, {PRETRAINED: "pretrain"}, (1.0, "constant predictor")),
        ("Detection", "Loss of Mask R-CNN.", {PRETRAINED: "det_pretrained", SCRATCH: "det_scratch"}, None),
        ("Segmentation", "Loss of UperNet.", {PRETRAINED: "seg_pretrained", SCRATCH: "seg_scratch"}, None),
    )
    section = Section(
        "Loss curves",
        ["Faint: logged values, each a mean over the preceding steps. Strong: moving average of 5 logged values."],
    )
    for title, caption, names, constant in curves:
        lines = [
            charts.Line(start, runs[name].losses, figures.ARM_COLOURS[start])
            for start, name in names.items()
            if runs[name].losses
        ]
        if lines:
            data = charts.loss_curves(lines, constant)
            section.parts.append(Figure(f"loss_{title.lower()}.png", data, f"**{title}.** {caption}"))
        else:
            section.parts.append(f"{title} is not shown: there is no training log.")
    return section


def _reconstructions(folder: Path) -> Section:
    run, images = folder / "pretrain", folder / "shapes" / "coco" / "val2017"
    config, checkpoint = config_path(run), checkpoint_path(run)
    title = "What pretraining predicts"
    if not (config and checkpoint and images.is_dir()):
        return Section(title, ["Not shown: there is no finished pretraining, or there are no validation images."])
    shown = reconstruct(config, checkpoint, images, SHOWN)
    caption = (
        f"The first {len(shown.images)} validation images, which the model was not trained on. It predicts every"
        f" cluster of {shown.given} × {shown.given} pixels but the first (dotted), each from the true clusters before"
        " it. It predicts normalized pixels only: each patch is shown with the mean and standard deviation **of the"
        " true patch**, so coarse brightness comes from the truth. “Patch means” shows what a constant"
        " prediction gives with that help (grey, because the three colours share one mean). “Absolute error” is in grey"
        f" levels (0 to 255), averaged over the colours. The loss over all {shown.count} validation images is"
        f" {shown.loss:.2f} (whole images; training uses crops)."
    )
    return Section(title, [Figure("reconstructions.jpg", figures.reconstructions(shown), caption)])


def _detections(folder: Path) -> Section:
    coco = folder / "shapes" / "coco"
    files = {
        label: folder / f"det_{start}" / "predictions.json"
        for label, start in zip(figures.ARM_COLOURS, ("pretrained", "scratch"))
    }
    files = {label: path for label, path in files.items() if path.is_file()}
    annotations = coco / "annotations" / "instances_val2017.json"
    if not files or not annotations.is_file():
        return Section("Detection", ["Not shown: there are no predictions of a detector."])
    truth = read_truth(annotations)
    found = {label: read_results(path, truth) for label, path in files.items()}
    labels = {category: label for label, category in enumerate(truth.cats)}
    names = [category["name"] for category in truth.cats.values()]
    shown = list(truth.imgs.values())[:SHOWN]
    images = [read_pixels(coco / "val2017" / image["file_name"]) for image in shown]
    columns = {"truth": [true_objects(truth, image["id"], labels) for image in shown]}
    for label, results in found.items():
        columns[label] = [found_objects(results[image["id"]], labels, MIN_SCORE) for image in shown]
    caption = (
        f"The first {len(images)} validation images (not selected), with all objects that score at least {MIN_SCORE}."
        f" The number after a class is its score in percent.{_missing(found)}"
    )
    return Section("Detection", [Figure("detection.jpg", figures.detections(images, columns, names), caption)])


def _segmentations(folder: Path, meta: dict) -> Section:
    ade = folder / "shapes" / "ade"
    truth = ade / "annotations" / "validation"
    names = meta.get("classes", [])
    folders = {label: folder / seg / "predictions" for label, (_, seg) in ROWS.items()}
    iou = {label: class_iou(path, truth, len(names)) for label, path in folders.items()}
    iou = {label: values for label, values in iou.items() if values is not None}
    if not iou:
        return Section("Segmentation", ["Not shown: there are no predictions of a segmentor."])
    files = sorted(truth.glob("*.png"))[:SHOWN]
    images = [read_pixels(ade / "images" / "validation" / f"{file.stem}.jpg") for file in files]
    columns = {"truth": truth} | {label: folders[label] for label in figures.ARM_COLOURS if label in iou}
    maps = {title: [read_pixels(path / file.name) for file in files] for title, path in columns.items()}
    caption = f"The first {len(files)} validation images (not selected).{_missing(iou)}"
    rows = [(label, *(f"{value:.1f}" for value in values)) for label, values in iou.items()]
    return Section(
        "Segmentation",
        [
            Figure("segmentation.jpg", figures.segmentations(images, maps, names), caption),
            "IoU of each class in points, over all validation images:",
            Table(("", *names), rows, figures.ROW_COLOURS),
        ],
    )


def _missing(found: dict) -> str:
    names = [name for name in figures.ARM_COLOURS if name not in found]
    return f" Not shown, because their predictions are missing: {', '.join(names)}." if names else ""


def _steps(steps: dict) -> Section:
    if not steps.get("steps"):
        return Section("Steps", ["Not shown: there is no steps.json."])
    rows = [(s["name"], duration(s["seconds"]), f"`{s['command']}`") for s in steps["steps"]]
    versions = ", ".join(f"{name} {version}" for name, version in steps.get("versions", {}).items())
    note = "`@FOLDER` is the newest checkpoint of that folder. " if "@" in str(rows) else ""
    note += "Steps that run side by side slow each other down. " + (f"Versions: {versions}." if versions else "")
    return Section("Steps", [Table(("step", "time", "command"), rows), note.strip()])


def _next_steps() -> Section:
    items = [
        "Your own images: `python tools/pretrain.py --model arm_tiny --data IMAGES --epochs 20"
        " --batch-size 32`, where IMAGES is a folder of images.",
        "COCO, on 8 GPUs: `tools/dist_train.sh det_configs/mask_rcnn_arm_b.py 8`.",
        "ADE20K, on 8 GPUs: `tools/dist_train.sh seg_configs/upernet_arm_b.py 8`.",
    ]
    return Section("Where to go next", [items])
