"""Writes a page about any runs: curves, settings that differ, metrics by class, confusion matrices, images.

Everything comes from files in the work directories, and nothing in them is executed. What is missing or damaged is a
sentence on the page.
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from arm_backbone.checkpoint.writing import check_writable, replacing
from arm_images.errors import DataError

from . import charts
from .charts import Line
from .page import Figure, Gallery, Section, Table, duration, render
from .pretraining_section import pretraining_section
from .runs import MEASURES, Run, inspect_run, to_points
from .score_sections import Judged, judge, score_sections
from .settings import differing_settings
from .style import series_colour, series_line
from .training_log import Points

VALIDATED = {  # task -> measures whose curves are shown
    "detection": ("box AP", "mask AP"),
    "segmentation": ("mIoU",),
    "classification": ("top-1 accuracy",),
}
PARTS = 6  # parts of a loss in one figure, the largest


def write_report(folders: Sequence[Path], out: Path) -> list[str]:
    """Write the page.

    Args:
        folders: work directories of runs of any task.
        out: the HTML file.

    Returns:
        sentences on what is missing or damaged, which the page holds too.

    Raises:
        DataError: if a folder does not exist.
        WriteError: if the page cannot be written.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    for folder in folders:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise DataError(f"{folder} {what}; give the work dir of a run")
    check_writable(out)
    runs = [_inspect(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]
    judged = [judge(run) for run in runs]
    sections = [_overview(judged), *_settings(runs)]
    tasks = list(dict.fromkeys(run.task for run in runs))
    for task in tasks:
        group = [(number, of_run) for number, of_run in enumerate(judged) if of_run.run.task == task]
        of_task = [_curves([(number, of_run.run) for number, of_run in group], task), *score_sections(group)]
        if task == "pretraining":
            of_task += pretraining_section([of_run.run for _, of_run in group])
        suffix = f" ({task or 'unknown task'})" if len(tasks) > 1 else ""
        sections += [Section(f"{section.title}{suffix}", section.parts) for section in of_task if section.parts]
    problems = [f"{of_run.run.name}: {fault}" for of_run in judged for fault in of_run.faults]
    title = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
    summary = [_state(run) for run in runs]
    with replacing(out) as partial:
        partial.write_text(render("report.html.j2", f"Report: {title}", summary, sections), encoding="utf-8")
    return problems


def run_names(folders: Sequence[Path]) -> list[str]:
    """Names that tell the runs apart: the ends of their paths, as short as possible."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({names[-depth:] for names in parts}) < len(parts):
        depth += 1
    return ["/".join(names[-depth:]) for names in parts]


def _inspect(folder: Path, name: str) -> Run:
    print(f"reading {folder}", file=sys.stderr, flush=True)
    return inspect_run(folder, name)


def _state(run: Run) -> str:
    """What was trained, and how far."""
    if not run.log.train:
        inner = sorted({path.parents[2].name for path in run.folder.glob("*/*/vis_data/scalars.json")} - {"test"})
        found = f" Its folders {', '.join(inner[:4])} hold logs: give these." if inner else ""
        started = " The training has started and logged nothing yet." if run.running else ""
        return f"**{run.name}**: there is no training log in {run.folder}.{started or found}"
    reached, finished = _progress(run)
    if run.running:
        state = f"is still training, {reached}; this page shows what is logged so far"
    else:
        state = f"has finished {reached}" if finished else f"ended {reached}"
    if not (run.running or finished) and "EarlyStopHook" in str(run.config.get("custom_hooks")):
        state += "; its EarlyStopHook may have ended it"
    text = f"**{run.name}**{f' ({run.task})' if run.task else ''}: {state}."
    if resumed := run.log.resumed:
        text += f" It was resumed at step{'s' * (len(resumed) > 1)} {', '.join(map(str, resumed))}."
    return text


def _progress(run: Run) -> tuple[str, bool]:
    """How far a training came, and whether it is known to be its end."""
    length = run.settings("train_cfg")
    saved = re.fullmatch(r"(iter|epoch)_(\d+)", run.checkpoint.stem) if run.checkpoint else None
    epochs = int(saved[2]) if saved and saved[1] == "epoch" else 0
    steps = max(run.log.steps, int(saved[2]) if saved and saved[1] == "iter" else 0)
    if isinstance(total := length.get("max_epochs"), int) and run.log.epoch is not None:
        return f"in epoch {max(epochs, run.log.epoch)} of {total}", epochs >= total
    if isinstance(total := length.get("max_iters"), int):
        return f"after {steps} of {total} steps", steps >= total
    return f"after {steps} steps", False


def _overview(judged: Sequence[Judged]) -> Section:
    measures = [m for m in MEASURES if any(of_run.points(m) is not None for of_run in judged)]
    columns = ("", *measures, "best validation", "training time", "parameters")
    rows = []
    for of_run in judged:
        run, points = of_run.run, [of_run.points(measure) for measure in measures]
        shown = ["–" if value is None else f"{value:.1f}" for value in points]
        time = "–" if run.log.seconds is None else duration(run.log.seconds)
        size = "–" if run.parameters is None else f"{run.parameters[0] / 1e6:.2f} M"
        rows.append((run.name, *shown, _best(run), time, size))
    dots = {of_run.run.name: series_colour(number) for number, of_run in enumerate(judged)} if len(judged) > 1 else {}
    note = (
        "Points out of 100 on the test set, recomputed from the saved predictions, or of the newest test if none are"
        " saved. Time: of the training steps alone. Parameters: all tensors of the last checkpoint."
    )
    faults = [f"**{of_run.run.name}**: {fault}" for of_run in judged for fault in of_run.faults]
    return Section("Results", [Table(columns, rows, dots), note, *([faults] if faults else [])])


def _best(run: Run) -> str:
    """The highest value of the first measure that was validated, and its step."""
    for measure in VALIDATED.get(run.task, ()):
        found = [(points, step) for step, points in _validation(run, measure)]
        if found:
            value, step = max(found, key=lambda pair: (pair[0], -pair[1]))
            return f"{measure} {value:.1f}, step {step}"
    return "–"


def _validation(run: Run, measure: str) -> list[tuple[int, float]]:
    logged = [(step, to_points(measure, value)) for step, value in run.log.val.get(MEASURES[measure], [])]
    return [(step, points) for step, points in logged if points is not None]


def _settings(runs: Sequence[Run]) -> list[Section]:
    if len(runs) < 2:
        return []
    known = [run for run in runs if run.config]
    if len(known) < 2:
        return [Section("Settings that differ", ["Not shown: fewer than two runs have saved their configuration."])]
    rows = differing_settings([run.config for run in known])
    if not rows:
        return [Section("Settings that differ", ["The saved configurations are the same."])]
    return [Section("Settings that differ", [Table(("setting", *(run.name for run in known)), rows)])]


def _curves(runs: Sequence[tuple[int, Run]], task: str) -> Section:
    """Curves of the runs of one task; each run comes with its number on the page."""
    drawn: list[Figure] = []

    def lines(points_of: Callable[[Run], Points]) -> list[Line]:
        found = [(number, run, points_of(run)) for number, run in runs]
        return [Line(run.name, points, series_colour(i), series_line(i)) for i, run, points in found if points]

    losses = lines(lambda run: run.losses)
    if losses:
        note = "Faint: logged values, each a mean over the steps before it. Strong: moving average of 5 logged values."
        describes = f"Training loss over training steps: {_ends(losses)}"
        drawn.append(Figure("loss.png", charts.loss_curves(losses), f"**Loss.** {note}", describes))
    if len(runs) == 1:
        drawn += _loss_parts(runs[0][1])
    for measure in VALIDATED.get(task, ()):
        found = lines(lambda run, measure=measure: _validation(run, measure))
        most = max((len(line.points) for line in found), default=0)
        if most > 1:
            data = charts.curves(found, measure, marked=most <= 30)
            describes = f"{measure} over training steps: {_ends(found)}"
            drawn.append(Figure("validation.png", data, f"**Validation.** {measure} in points.", describes))
    rates = lines(lambda run: run.log.train.get("lr", []))
    if rates:
        describes = f"Learning rate over training steps: {_ends(rates)}"
        caption = "**Learning rate** of the first group of parameters."
        drawn.append(Figure("learning_rate.png", charts.curves(rates, "learning rate"), caption, describes))
    return Section("Curves", [Gallery(drawn)] if drawn else [])


def _loss_parts(run: Run) -> list[Figure]:
    """The parts that a loss is the sum of, if there are several."""
    parts = {
        name: points for name, points in run.log.train.items() if re.search(r"(^|[._])loss", name) and name != "loss"
    }
    largest = sorted(parts, key=lambda name: -parts[name][-1][1])[:PARTS]
    if len(largest) < 2:
        return []
    lines = [Line(name, parts[name], series_colour(i), series_line(i)) for i, name in enumerate(largest)]
    more = f" The {PARTS} that are largest at the end." if len(parts) > PARTS else ""
    describes = f"Parts of the loss over training steps: {_ends(lines)}"
    return [Figure("loss_parts.png", charts.curves(lines, "loss"), f"**Parts of the loss.**{more}", describes)]


def _ends(lines: Sequence[Line]) -> str:
    """First and last value of each line in words."""
    ends = [(line.label, line.points[0][1], *line.points[-1]) for line in lines]
    return "; ".join(f"{label} from {first:.3g} to {last:.3g} at step {step}" for label, first, step, last in ends)
