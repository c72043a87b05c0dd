"""The parts of a report that need predictions: metrics by class, confusion matrices, precision over recall, images."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import charts, figures
from .charts import Line
from .page import Figure, Gallery, Section, Table
from .runs import Run, config_path, noted
from .scores import Scores, best_and_worst, same_test
from .style import series_colour, series_line

SAVED = {"detection": "predictions.json", "segmentation": "predictions", "classification": "predictions.json"}
SHOWN = 4  # best and worst images, each
RUNS_SHOWN = 4  # whose predictions are drawn side by side
CHARTED = 40  # classes in a chart; of more there is a table alone
CURVES = 7  # classes with a curve of their own
MISTAKES = 8  # lines in the table of mistakes


@dataclass(frozen=True)
class Judged:
    """A run, and what its saved predictions are worth.

    Attributes:
        scores: None if there are no predictions, or they cannot be judged.
        faults: sentences on what is missing or damaged.
    """

    run: Run
    scores: Scores | None = None
    faults: list[str] = field(default_factory=list)

    def points(self, measure: str) -> float | None:
        """A measure of the saved predictions; of the newest test if there are none."""
        if self.scores is not None and measure in self.scores.overall:
            return self.scores.overall[measure]
        return self.run.points(measure)


def judge(run: Run) -> Judged:
    """Compare the predictions in a work directory with the truth; what is missing is named in `faults`."""
    faults = list(run.faults)
    if run.task not in SAVED:
        return Judged(run, faults=faults)
    saved, scores = run.folder / SAVED[run.task], None
    if not saved.exists():
        faults.append(_absent(run, saved))
    else:
        print(f"judging {saved}", file=sys.stderr, flush=True)
        with noted(faults, str(saved)), redirect_stdout(sys.stderr):  # mmdet and mmseg print when they are imported
            scores = _scores(run, saved)
            faults += scores.notes
        if run.checkpoint and saved.stat().st_mtime < run.checkpoint.stat().st_mtime:
            faults.append(
                f"{saved} is older than {run.checkpoint.name}: it holds predictions of an earlier checkpoint."
            )
    return Judged(run, scores, faults)


def _scores(run: Run, saved: Path) -> Scores:
    if run.task == "segmentation":
        from .segmentation_scores import segmentation_scores  # imports mmseg, which takes seconds

        return segmentation_scores(run, saved)
    if run.task == "detection":
        from .detection_scores import detection_scores

        return detection_scores(run, saved)
    from .classification_scores import classification_scores

    return classification_scores(run, saved)


def _absent(run: Run, saved: Path) -> str:
    """The sentence that says how the predictions are made."""
    best = sorted(run.folder.glob("best_*.pth"), key=lambda path: path.stat().st_mtime)
    words = [config_path(run.folder) or "CONFIG", *(best or [run.checkpoint or "CHECKPOINT"])[-1:]]
    words += ["--work-dir", run.folder / "test", "--out", saved]
    command = shlex.join(["python", "tools/test.py", *map(str, words)])
    pickled = run.folder / "predictions.pkl"
    unread = f" {pickled.name} is not read, because reading it could execute what is in it." if pickled.exists() else ""
    return f"there are no predictions for metrics by class and images; make them with `{command}`.{unread}"


def score_sections(judged: Sequence[tuple[int, Judged]]) -> list[Section]:
    """Sections on the runs of one task; each run comes with its number on the page.

    Runs that were tested on the same images and classes share them.
    """
    groups: list[list[tuple[int, Judged]]] = []
    for number, run in judged:
        if run.scores is None:
            continue
        group = next((group for group in groups if same_test(group[0][1].scores, run.scores)), None)
        if group is None:
            groups.append([(number, run)])
        else:
            group.append((number, run))
    sections = []
    for group in groups:
        suffix = f": {', '.join(run.run.name for _, run in group)}" if len(groups) > 1 else ""
        for title, parts in (
            ("Classes", _classes(group)),
            ("Precision and recall", _precision_recall(group)),
            ("Confusion matrix", _confusion(group)),
            ("Best and worst images", _examples(group)),
        ):
            sections.append(Section(f"{title}{suffix}", parts))
    return sections


def _classes(group: Sequence[tuple[int, Judged]]) -> list:
    """A chart of the first measure, and a table of all measures by class."""
    scores = group[0][1].scores
    parts: list = []
    measure = next(iter(scores.by_class))
    if len(scores.classes) <= CHARTED:
        lines = [
            Line(run.run.name, list(enumerate(run.scores.by_class[measure])), series_colour(number))
            for number, run in group
        ]
        described = "; ".join(f"{line.label}: {_named(scores.classes, line.points)}" for line in lines)
        caption = f"**{measure} of each class** in points."
        parts.append(Figure("classes.png", charts.classes(scores.classes, lines), caption, f"{measure}: {described}"))
    measures = [name for name in scores.by_class if all(name in run.scores.by_class for _, run in group)]
    heads = [name if len(group) == 1 else f"{run.run.name}, {name}" for name in measures for _, run in group]
    rows = []
    for label, name in enumerate(scores.classes):
        values = [run.scores.by_class[measure][label] for measure in measures for _, run in group]
        count = scores.counts[label]
        shown = f"{100 * count:.2f} %" if scores.counts.dtype.kind == "f" else f"{count:,}"
        rows.append((name, shown, *("–" if np.isnan(value) else f"{value:.1f}" for value in values)))
    parts.append(Table(("class", scores.counted, *heads), rows))
    return parts


def _named(classes: Sequence[str], points: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{classes[index]} {value:.0f}" for index, value in points if not np.isnan(value))


def _precision_recall(group: Sequence[tuple[int, Judged]]) -> list:
    """For detectors: the mean over the classes for each run, and the classes of a single run."""
    if not hasattr(group[0][1].scores, "curves"):
        return []
    lines = []
    for number, run in group:
        for limit, style in ((0.5, series_line(number)), (0.75, ":")):
            values = np.nanmean(run.scores.curves[limit, "box AP"], axis=1)
            label = f"IoU {limit}" if len(group) == 1 else f"{run.run.name}, IoU {limit}"
            lines.append(Line(label, list(enumerate(values)), series_colour(number), style))
    caption = (
        "**Mean over the classes.** Precision of the boxes at the recalls 0 to 100 %, as pycocotools interpolates it:"
        " the highest at this recall or above. Dotted: a box counts if its IoU is at least 0.75."
    )
    described = "; ".join(f"{line.label}: mean {np.mean([y for _, y in line.points]):.0f} %" for line in lines)
    data = charts.precision_recall(lines)
    drawn = [Figure("precision_recall.png", data, caption, f"Precision over recall. {described}")]
    if len(group) == 1:
        drawn += _precision_of_classes(group[0][1].scores)
    return [Gallery(drawn)]


def _precision_of_classes(scores: Scores) -> list[Figure]:
    values = scores.curves[0.5, "box AP"]  # (101, C)
    known = [label for label in range(len(scores.classes)) if not np.isnan(values[0, label])]
    if len(known) < 2:
        return []
    chosen = sorted(sorted(known, key=lambda label: -scores.counts[label])[:CURVES])
    lines = [
        Line(scores.classes[label], list(enumerate(values[:, label])), series_colour(i), series_line(i))
        for i, label in enumerate(chosen)
    ]
    which = f"The {CURVES} classes with the most objects" if len(known) > CURVES else "Each class"
    described = ", ".join(f"{scores.classes[label]} {values[:, label].mean():.0f} %" for label in chosen)
    data, caption = charts.precision_recall(lines), f"**{which}**, at IoU 0.5."
    return [Figure("precision_recall_classes.png", data, caption, f"Mean precision: {described}")]


def _confusion(group: Sequence[tuple[int, Judged]]) -> list:
    """A matrix for each run, and its most frequent mistakes."""
    parts: list = []
    for _, run in group:
        matrix = run.scores.confusion
        if len(group) > 1:
            parts.append(f"**{run.run.name}**")
        mistakes = matrix.most_frequent(MISTAKES)
        described = "; ".join(f"{truth} taken for {found}: {share:.0f} %" for truth, found, _, share in mistakes[:4])
        data = charts.confusion(matrix.counts, matrix.rows, matrix.columns)
        numbered = len(matrix.columns) > charts.NAMED_CLASSES
        how = matrix.how + " The classes are numbered from 0 in the order of the table." * numbered
        parts.append(Figure("confusion.png", data, how, f"Confusion matrix. {described}"))
        rows = [(truth, found, f"{count:,}", f"{share:.1f} %") for truth, found, count, share in mistakes]
        if rows:
            parts.append(Table(("truth", "predicted", matrix.unit, "share of the row"), rows))
    return parts


def _examples(group: Sequence[tuple[int, Judged]]) -> list:
    """The best and the worst images, by the mean of the runs' scores."""
    shown = group[:RUNS_SHOWN]
    scores = [run.scores for _, run in group]
    best, worst = best_and_worst(scores, SHOWN)
    if not best:
        return ["Not shown: there is nothing to judge in any image."]
    mean = " (mean over the runs)" if len(group) > 1 else ""
    text = f"Judged by the {scores[0].image_measure}{mean}, of {len(scores[0].names)} images."
    if len(group) > RUNS_SHOWN:
        text += f" Drawn are the predictions of the first {RUNS_SHOWN} runs."
    parts: list = [text]
    for heading, indices in (("Worst", worst), ("Best", best)):
        drawn, faults = [], []
        for index in indices:
            with noted(faults, scores[0].names[index]):
                drawn.append(_example(shown, index, heading))
        parts += [f"**{heading}**", Gallery(drawn)] if drawn else []
        parts += [f"Not drawn: {fault}." for fault in faults]
    return parts


def _example(group: Sequence[tuple[int, Judged]], index: int, heading: str) -> Figure:
    first = group[0][1].scores
    alone = len(group) == 1
    panels = first.truth_panels(index)
    for _, run in group:
        panels += run.scores.panels(index, "prediction" if alone else run.run.name, alone)
    data = figures.example(panels, first.ratio(index), first.legend(index))
    texts = []
    for _, run in group:
        points, said = run.scores.of_images[index], run.scores.caption(index)
        name = "" if alone else f"{run.run.name} "
        texts.append(f"{name}{points:.1f}" + (f" ({said})" if said else ""))
    caption = f"`{first.names[index]}`: {'; '.join(texts)}"
    describes = (
        f"{heading} image {first.names[index]}: {', '.join(panel.title for panel in panels)}. {'; '.join(texts)}"
    )
    return Figure("example.jpg", data, caption, describes)
