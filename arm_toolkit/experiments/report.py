"""Writes the quickstart's report: what was run, its results, and those of the recorded seeds beside them.

All numbers come from files in the work directories and from `quickstart_seeds.json`; a missing result is shown as a
dash. The report is written as an HTML page that needs no other file, and as Markdown.
"""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from arm_backbone.checkpoint.writing import replacing
from arm_images.errors import DataError

from . import charts, figures
from .detections import found_objects, read_results, read_truth, true_objects
from .files import read_json, read_pixels
from .generated import settings
from .generated_comparison import MEASURES, RECORDED
from .page import Figure, Gallery, Section, Table, duration, render
from .reconstruction import reconstruct
from .runs import Run, checkpoint_path, config_path, read_config, read_run
from .segmentation_scores import class_iou
from .style import series_colour

MODELS = {"det": "Mask R-CNN", "seg": "UperNet"}  # training -> model
THIS_RUN = {"box AP": "det", "mask AP": "det", "mIoU": "seg"}  # measure -> training
ROWS = ("this run", "recorded, AR-pretrained", "recorded, from scratch")
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
    seconds = {step["name"]: step["seconds"] for step in steps.get("steps", [])}
    runs = {name: read_run(folder / name, seconds.get(name)) for name in ("pretrain", *MODELS)}
    sections = [
        _results(runs),
        _curves(runs),
        _reconstructions(folder),
        _detections(folder),
        _segmentations(folder, meta),
        _new_images(folder),
        _steps(steps),
        _next_steps(),
    ]
    (folder / "report_files").mkdir(exist_ok=True)
    for figure in _figures(sections):
        with replacing(folder / "report_files" / figure.name) as partial:
            partial.write_bytes(figure.data)
    summary = _summary(runs, steps, meta)
    for suffix in ("md", "html"):
        with replacing(folder / f"report.{suffix}") as partial:
            partial.write_text(render(f"report.{suffix}.j2", "ARM quickstart", summary, sections))
    return folder / "report.html"


def _figures(sections: list[Section]) -> Iterator[Figure]:
    for part in (part for section in sections for part in section.parts):
        if isinstance(part, Gallery):
            yield from part.figures
        elif isinstance(part, Figure):
            yield part


def _summary(runs: dict[str, Run], steps: dict, meta: dict) -> list[str]:
    if not any(run.losses for run in runs.values()):
        return ["Nothing to report yet: this folder has no training log."]
    paragraphs = []
    if meta:
        size = meta["parameters"]
        paragraphs.append(
            f"**Data.** Generated: {size['train']} training and {size['val']} validation images of {size['size']} ×"
            f" {size['size']} pixels. Their shapes ({', '.join(meta['instance_classes'])}) differ only in outline and"
            " texture."
        )
    if runs["pretrain"].losses:
        paragraphs.append(_pretraining(runs["pretrain"]))
    finetuned = [_finetuning(model, runs[name]) for name, model in MODELS.items() if runs[name].losses]
    if finetuned:
        paragraphs.append(f"**Finetuning.** From the pretrained weights, with labels: {' and '.join(finetuned)}.")
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


def _finetuning(model: str, run: Run) -> str:
    images = read_config(run.folder).get("train_dataloader", {}).get("dataset", {}).get("indices")
    facts = [f"{images} labelled images"] if isinstance(images, int) else []
    facts.append(f"{run.losses[-1][0]} steps")
    facts += [f"{run.parameters[0] / 1e6:.1f} M parameters"] if run.parameters else []
    facts += [duration(run.seconds)] if run.seconds is not None else []
    return f"{model} ({', '.join(facts)})"


def _results(runs: dict[str, Run]) -> Section:
    record = json.loads(RECORDED.read_text())
    current = record["settings"] == settings()
    here = [runs[THIS_RUN[shown]].points(shown) if shown in THIS_RUN else None for shown in MEASURES]
    rows = [(ROWS[0], *("–" if points is None else f"{points:.1f}" for points in here))]
    if current:
        for row, cells in zip(ROWS[1:], record["results"].values(), strict=True):
            rows.append((row, *(_spread([cell[shown] for cell in cells]) for shown in MEASURES)))
    dots = {row: series_colour(i) for row, i in zip(ROWS, (0, 0, 1), strict=True)}
    return Section("Results", [Table(("", *MEASURES), rows, dots), _explanation(record, current)])


def _spread(points: list[float]) -> str:
    return f"{statistics.mean(points):.1f} ({min(points):.1f} to {max(points):.1f})"


def _explanation(record: dict, current: bool) -> str:
    text = (
        "AP and mIoU are points out of 100 on the validation images. This run is one seed, which does not show what"
        " pretraining changes: the spread of several seeds does. `python tools/compare_pretraining.py --generated`"
        " measures it. "
    )
    if not current:
        return text + "Its recorded results are not shown: they are of other configurations or another data set."
    return text + (
        f"Recorded: mean, and lowest to highest, of {len(record['seeds'])} seeds on {record['machine']}; each seed has"
        " its own images. With a frozen backbone only the head is trained. See `docs/pretraining.md`."
    )


def _curves(runs: dict[str, Run]) -> Section:
    mean = "Mean squared error of the normalized pixels; predicting each patch's mean gives 1.0."
    curves = (
        ("Pretraining", mean, "pretrain", (1.0, "constant predictor")),
        ("Detection", "Loss of Mask R-CNN.", "det", None),
        ("Segmentation", "Loss of UperNet.", "seg", None),
    )
    section = Section(
        "Loss curves",
        ["Faint: logged values, each a mean over the preceding steps. Strong: moving average of 5 logged values."],
    )
    for title, caption, name, constant in curves:
        if runs[name].losses:
            data = charts.loss_curves([charts.Line("loss", runs[name].losses, series_colour(0))], constant)
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
    results, annotations = folder / "det" / "predictions.json", coco / "annotations" / "instances_val2017.json"
    if not results.is_file() or not annotations.is_file():
        return Section("Detection", ["Not shown: there are no predictions of a detector."])
    truth = read_truth(annotations)
    found = read_results(results, truth)
    labels = {category: label for label, category in enumerate(truth.cats)}
    names = [category["name"] for category in truth.cats.values()]
    shown = list(truth.imgs.values())[:SHOWN]
    images = [read_pixels(coco / "val2017" / image["file_name"]) for image in shown]
    columns = {
        "truth": [true_objects(truth, image["id"], labels) for image in shown],
        "prediction": [found_objects(found[image["id"]], labels, MIN_SCORE) for image in shown],
    }
    caption = (
        f"The first {len(images)} validation images (not selected), with all objects that score at least {MIN_SCORE}."
        " The number after a class is its score in percent."
    )
    return Section("Detection", [Figure("detection.jpg", figures.detections(images, columns, names), caption)])


def _segmentations(folder: Path, meta: dict) -> Section:
    ade, predictions = folder / "shapes" / "ade", folder / "seg" / "predictions"
    truth = ade / "annotations" / "validation"
    names = meta.get("classes", [])
    iou = class_iou(predictions, truth, len(names))
    if iou is None:
        return Section("Segmentation", ["Not shown: there are no predictions of a segmentor."])
    files = sorted(truth.glob("*.png"))[:SHOWN]
    images = [read_pixels(ade / "images" / "validation" / f"{file.stem}.jpg") for file in files]
    columns = {"truth": truth, "prediction": predictions}
    maps = {title: [read_pixels(path / file.name) for file in files] for title, path in columns.items()}
    return Section(
        "Segmentation",
        [
            Figure(
                "segmentation.jpg",
                figures.segmentations(images, maps, names),
                f"The first {len(files)} validation images (not selected).",
            ),
            "IoU of each class in points, over all validation images:",
            Table(tuple(names), [tuple(f"{value:.1f}" for value in iou)]),
        ],
    )


def _new_images(folder: Path) -> Section:
    """What tools/predict.py drew with the published models."""
    shown = [
        Figure(f"new_{name}_{path.name}", path.read_bytes(), f"{model}: `{path.name}`")
        for name, model in MODELS.items()
        for path in sorted((folder / "predicted" / name / "drawn").glob("*.jpg"))
    ]
    if not shown:
        return Section("New images", ["Not shown: there are no predictions of the published models."])
    note = (
        f"Images that no step used, predicted by the published models in `{folder / 'published'}`. Your own:"
        f" `python tools/predict.py {folder / 'published' / 'det'} IMAGES --out predicted`"
    )
    return Section("New images", [note, Gallery(shown)])


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
