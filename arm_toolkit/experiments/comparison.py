"""Compares choices of pretraining on photographs, evaluated by segmentation of a drive that no training uses.

One cell is one choice of pretraining (or none) with one seed: pretrain, convert, finetune UperNet, train a linear probe
on the frozen encoder, evaluate both, and label the frozen encoder's patches by their nearest neighbours. The
equal-compute cell trains UperNet from scratch with the CPU time that "arm" spends on pretraining and finetuning.
"""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from arm_backbone.checkpoint.writing import replacing
from arm_images.errors import DataError

from ..tables import markdown_table
from .charts import smooth
from .files import read_json
from .runs import read_losses
from .segmentation_scores import class_iou
from .steps import FASTER, Spent, Step, run_steps
from .studies import MEASURES, Choice, Study

EQUAL_COMPUTE = "none_equal_compute"


@dataclass(frozen=True)
class Comparison:
    """The data and the size of a comparison.

    Attributes:
        study: what is compared.
        folder: receives all results.
        photographs: list file of the images for pretraining.
        prefix: folder that the paths in the list file are relative to.
        camvid: segmentation data in ADE's layout.
        held_out: prefix of the frame names of the held-out drive.
        seeds: each choice of pretraining is run once per seed, unless the study limits it to the first ones.
        options: `--cfg-options` of every pretraining, e.g. to shorten it.
        finetune_iters: iterations of every finetuning and probe.
    """

    study: Study
    folder: Path
    photographs: Path
    prefix: Path
    camvid: Path
    held_out: str
    seeds: tuple[int, ...] = (0, 1)
    options: tuple[str, ...] = ()
    finetune_iters: int = 250

    def run(self) -> Path:
        """Run the unfinished steps and write the results; return the path of table.md.

        Raises:
            DataError: see `write_lists`.
            ConfigError: if a step fails.
        """
        self.write_lists()
        spent = run_steps(self.steps(), self.folder)
        if self.study.equal_compute:
            spent |= run_steps(self.equal_compute_steps(spent), self.folder)
        return self.write_results(spent)

    def write_lists(self) -> None:
        """Write the list files: photographs without the held-out drive, and CamVid's training and held-out frames.

        Raises:
            DataError: if a folder or file is missing, or if the held-out drive has no frame or every frame.
        """
        folder = self.camvid / "images/training"
        frames = sorted(path.stem for path in folder.glob("*.jpg"))
        if not frames or not (self.camvid / "meta.json").is_file():
            raise DataError(f"--camvid {self.camvid}: needs images/training/*.jpg and meta.json with the classes")
        held_out = [name for name in frames if name.startswith(self.held_out)]
        if not held_out or len(held_out) == len(frames):
            raise DataError(
                f"--held-out {self.held_out}: {len(held_out)} of {len(frames)} frames in {folder} start with it; "
                "give the prefix of one drive's frame names"
            )
        if not self.photographs.is_file():
            raise DataError(f"--photographs {self.photographs} does not exist; give a text file with one path per line")
        lines = [line.strip() for line in self.photographs.read_text().splitlines() if line.strip()]
        photographs = [line for line in lines if Path(line).stem not in set(held_out)]
        self.folder.mkdir(parents=True, exist_ok=True)
        training = [name for name in frames if name not in set(held_out)]
        for name, content in zip(("photographs", "training", "held_out"), (photographs, training, held_out)):
            with replacing(self.folder / f"{name}.txt") as partial:
                partial.write_text("".join(f"{line}\n" for line in content))

    def cells(self) -> Iterator[tuple[str, int]]:
        """Choice and seed of each cell except equal compute, all choices of the first seed first."""
        for number, seed in enumerate(self.seeds):
            for name, choice in self.study.choices.items():
                if choice.seeds is None or number < choice.seeds:
                    yield name, seed

    def steps(self) -> list[Step]:
        """The steps of all cells except equal compute, which depends on their times."""
        steps = []
        for name, seed in self.cells():
            cell, choice = f"{name}_{seed}", self.study.choices[name]
            if choice.config is None:
                steps += self._judged(cell, choice, seed, None, self.study.measures, self.finetune_iters)
                continue
            work_dir, backbone = self.folder / cell / "pretrain", self.folder / cell / "backbone.pth"
            pretrain = ("tools/pretrain.py", choice.config, "--data", str(self.folder / "photographs.txt"))
            pretrain += ("--data-prefix", str(self.prefix), "--work-dir", str(work_dir), FASTER)
            pretrain += ("--cfg-options", f"randomness.seed={seed}", *self.options)
            steps.append(Step(f"{cell}_pretrain", pretrain, (), work_dir, (self.folder / "photographs.txt",)))
            convert = ("tools/convert_checkpoint.py", f"@{work_dir}", str(backbone), "--to", "backbone")
            convert += choice.convert
            steps.append(Step(f"{cell}_convert", convert, (f"{cell}_pretrain",)))
            steps += self._judged(cell, choice, seed, backbone, self.study.measures, self.finetune_iters)
        return steps

    def equal_compute_steps(self, spent: dict[str, Spent]) -> list[Step]:
        """UperNet from scratch with the first seed, for the CPU time of ARM's pretraining and finetuning."""
        seed = self.seeds[0]
        pretraining, finetuning = (spent[f"arm_{seed}_{kind}"].cpu_seconds for kind in ("pretrain", "finetune"))
        iters = round(self.finetune_iters * (pretraining + finetuning) / finetuning)
        choice = self.study.choices["none"]
        return [*self._judged(f"{EQUAL_COMPUTE}_{seed}", choice, seed, None, ("finetune",), iters)]

    def _judged(
        self, cell: str, choice: Choice, seed: int, start: Path | None, measures: tuple[str, ...], iters: int
    ) -> Iterator[Step]:
        """Steps that take the measures of one cell, from the backbone `start` if given."""
        needs = () if start is None else (f"{cell}_convert",)
        data, lists = self.camvid.resolve(), self.folder.resolve()
        training, held_out = lists / "training.txt", lists / "held_out.txt"
        options = [f"randomness.seed={seed}"]
        for part, name in (("train", training), ("val", held_out), ("test", held_out)):
            dataset = f"{part}_dataloader.dataset"
            options += [f"{dataset}.data_root={data}", f"{dataset}.ann_file={name}"]
        if "knn" in measures:
            command = ("tools/knn.py", choice.probe, *([str(start)] if start else []))
            command += ("--json", str(self.folder / cell / "knn.json"), "--cfg-options", *options)
            yield Step(f"{cell}_knn", command, needs, None, (training, held_out))
        options += [f"train_cfg.max_iters={iters}", f"param_scheduler.1.end={iters}"]
        options += [f"train_cfg.val_interval={iters + 1}", f"default_hooks.checkpoint.interval={iters}"]
        options.append("model.backbone.init_cfg" + (f".checkpoint={start}" if start else "=None"))
        for kind in [measure for measure in measures if measure in ("finetune", "probe")]:
            config, work_dir = getattr(choice, kind), self.folder / cell / kind
            common = ("--cfg-options", *options)
            train = ("tools/train.py", config, "--work-dir", str(work_dir), FASTER, *common)
            test = ("tools/test.py", config, f"@{work_dir}", "--work-dir", str(work_dir / "test"))
            test += ("--out", str(work_dir / "predictions"), *common)
            yield Step(f"{cell}_{kind}", train, needs, work_dir, (training,))
            yield Step(f"{cell}_{kind}_test", test, (f"{cell}_{kind}",), work_dir / "test", (held_out,))

    def write_results(self, spent: dict[str, Spent]) -> Path:
        """Write results.json, curves.png and table.md of the finished steps; return the path of table.md.

        A missing result is shown as a dash.

        Args:
            spent: the cost of each finished step, by name.

        Raises:
            DataError: if a file of results is incomplete.
        """
        results: dict[str, dict[int, dict]] = {name: {} for name in self.study.choices}
        for name, seed in self.cells():
            results[name][seed] = self._cell_results(f"{name}_{seed}", spent)
        if self.study.equal_compute:
            seed = self.seeds[0]
            results[EQUAL_COMPUTE] = {seed: self._cell_results(f"{EQUAL_COMPUTE}_{seed}", spent)}
        with replacing(self.folder / "results.json") as partial:
            partial.write_text(json.dumps(results, indent=1))
        with replacing(self.folder / "curves.png") as partial:
            self.curves().savefig(partial, dpi=110, format="png")
        path = self.folder / "table.md"
        with replacing(path) as partial:
            partial.write_text("\n".join([table(results, self.study), "", *verdicts(results, self.study)]) + "\n")
        return path

    def _cell_results(self, cell: str, spent: dict[str, Spent]) -> dict:
        kinds = [kind for kind in ("pretrain", "finetune", "probe") if f"{cell}_{kind}" in spent]
        return {
            **{measure: self.scores(cell, measure) for measure in self.study.measures},
            "pretraining_loss": [x for _, x in read_losses(self.folder / cell / "pretrain")][-1:],
            "cpu_seconds": {kind: spent[f"{cell}_{kind}"].cpu_seconds for kind in kinds},
        }

    def scores(self, cell: str, kind: str) -> dict | None:
        """mIoU, and of a training the IoU of each class, in percent; None if it has not been measured."""
        if kind == "knn":
            return read_json(self.folder / cell / "knn.json") or None
        results = sorted((self.folder / cell / kind / "test").glob("*/*.json"))
        if not results:
            return None
        names = (self.folder / "held_out.txt").read_text().split()
        classes = len(read_json(self.camvid / "meta.json")["classes"])
        predictions = self.folder / cell / kind / "predictions"
        iou = class_iou(predictions, self.camvid / "annotations/training", classes, names)
        return dict(mIoU=read_json(results[-1])["mIoU"], classes=[round(float(x), 1) for x in iou])

    def curves(self) -> Figure:
        """Losses of pretraining and finetuning, smoothed: a colour per choice of pretraining, a line per seed."""
        figure = Figure(figsize=(9, 3), layout="constrained")
        titles = dict(pretrain="pretraining loss (targets differ)", finetune="finetuning loss")
        for axis, (kind, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
            for index, name in enumerate(self.study.choices):
                for seed in self.seeds:
                    losses = read_losses(self.folder / f"{name}_{seed}" / kind)
                    if losses:
                        label = name if seed == self.seeds[0] else None
                        steps, values = zip(*losses)
                        axis.plot(steps, smooth(values), color=f"C{index}", linewidth=0.8, label=label)
            axis.set_xlabel("iteration", fontsize=7)
            axis.set_title(title, fontsize=8)
            axis.tick_params(labelsize=6)
            axis.legend(fontsize=6)
        return figure


def table(results: dict, study: Study) -> str:
    """A Markdown table: mIoU of every seed, and the mean difference from the same encoder without pretraining.

    Args:
        results: name of the choice -> seed -> results of the cell.
    """
    rows = []
    for name, cells in results.items():
        row, choice = [name], study.choices.get(name, study.choices["none"])
        for measure in study.measures:
            row.append(" / ".join(f"{x:.1f}" for x in measured(cells, measure).values()) or "-")
            values, others = paired(results, name, choice.baseline, measure)
            gains = [a - b for a, b in zip(values, others, strict=True)]
            row.append(f"{statistics.mean(gains):+.1f}" if gains and name != choice.baseline else "-")
        minutes = [sum(x for k, x in cell["cpu_seconds"].items() if k != "probe") / 60 for cell in cells.values()]
        minutes = [x for x in minutes if x]
        row.append(f"{statistics.mean(minutes):.1f}" if minutes else "-")
        rows.append(row)
    columns = [f"{MEASURES[measure]}, {what}" for measure in study.measures for what in ("mIoU", "gain")]
    return markdown_table(("pretraining", *columns, "CPU minutes"), rows)


def measured(cells: dict[int, dict], measure: str) -> dict[int, float]:
    """The mIoU of each seed that has it."""
    return {seed: cell[measure]["mIoU"] for seed, cell in cells.items() if cell.get(measure)}


def paired(results: dict, name: str, other: str, measure: str) -> tuple[list[float], list[float]]:
    """The mIoU of two choices, for each seed that has both."""
    values, others = measured(results[name], measure), measured(results[other], measure)
    seeds = [seed for seed in values if seed in others]
    return [values[seed] for seed in seeds], [others[seed] for seed in seeds]


def verdicts(results: dict, study: Study) -> list[str]:
    """Lines that say for each pair of the study and each measure whether the first gains on the second."""
    lines = []
    for name, other in study.pairs:
        for measure in study.measures:
            values, others = paired(results, name, other, measure)
            finished = len(values) == len(results[name]) == len(results[other])
            said = study.verdict(measure, values, others) if finished else "not finished"
            lines.append(f"* {MEASURES[measure]}: {name} against {other}: {said}")
    return lines
