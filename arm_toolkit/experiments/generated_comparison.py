"""Measures over several seeds what pretraining changes on the generated images, with the quickstart's configurations.

The setting is that of most people: many images, few labels. A seed draws its own data set, initial weights and order of
images. One cell is one start (pretrained weights, or none) with one seed: Mask R-CNN and UperNet learn from the 20
labelled images, and UperNet once more on the frozen backbone.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from arm_backbone.arm import resolve_arch
from arm_backbone.checkpoint.writing import replacing

from ..datasets.shapes import SEG_CLASSES
from ..engine.config import load_config
from ..machine import machine
from ..tables import markdown_table
from .generated import DET, SEG, pretraining_steps, settings, training_steps
from .runs import read_run
from .segmentation_scores import class_iou
from .steps import ROOT, Step, run_steps

STARTS = ("pretrained", "scratch")
MEASURES = {  # shown name -> training, measure of its test
    "box AP": ("det", "box AP"),
    "mask AP": ("det", "mask AP"),
    "mIoU": ("seg", "mIoU"),
    "mIoU, frozen backbone": ("probe", "mIoU"),
}
LEAST = "lowest IoU of a class"  # of UperNet; shows whether every class was learned
RECORDED = Path(__file__).with_name("quickstart_seeds.json")  # results.json of the recorded comparison


@dataclass(frozen=True)
class GeneratedComparison:
    """A comparison with and without pretraining.

    Attributes:
        folder: receives all results.
        seeds: each start is run once per seed.
    """

    folder: Path
    seeds: tuple[int, ...]

    def run(self) -> Path:
        """Run the unfinished steps and write the results; return the path of table.md.

        Raises:
            ConfigError: if a step fails.
        """
        run_steps(self.steps(), self.folder)
        return self.write_results()

    def steps(self) -> list[Step]:
        """The steps of all cells. Pretraining gets all cores, so it comes before the trainings, which share them."""
        first = [
            pretraining_steps(self._data(seed), self.folder / f"pretrain_{seed}", self._backbone(seed), seed)
            for seed in self.seeds
        ]
        steps = [shapes for shapes, *_ in first] + [step for _, *others in first for step in others]
        layers = resolve_arch(load_config(str(ROOT / SEG)).model.backbone.arch)[1]
        for seed in self.seeds:
            for start in STARTS:
                needs = f"convert_{seed}" if start == "pretrained" else f"shapes_{seed}"
                init = f".checkpoint={self._backbone(seed)}" if start == "pretrained" else "=None"
                for kind, config in (("det", DET), ("seg", SEG), ("probe", SEG)):
                    data = self._data(seed) / ("coco" if config == DET else "ade")
                    options = (f"randomness.seed={seed}", f"data_root={data}/", f"model.backbone.init_cfg{init}")
                    if kind == "probe":
                        options += (f"model.backbone.frozen_stages={layers}",)
                    steps += training_steps(self.folder / f"{kind}_{start}_{seed}", config, needs, options)
        return steps

    def _data(self, seed: int) -> Path:
        return self.folder / f"shapes_{seed}"

    def _backbone(self, seed: int) -> Path:
        return self.folder / f"backbone_{seed}.pth"

    def write_results(self) -> Path:
        """Write results.json and table.md of the finished steps; return the path of table.md.

        Raises:
            DataError: if a file of results is incomplete.
        """
        results = {start: [self._cell(start, seed) for seed in self.seeds] for start in STARTS}
        record = dict(seeds=self.seeds, machine=machine(), settings=settings(), results=results)
        with replacing(self.folder / "results.json") as partial:
            partial.write_text(json.dumps(record, indent=1) + "\n")
        path = self.folder / "table.md"
        with replacing(path) as partial:
            partial.write_text(f"{table(results)}\n\n" + "".join(f"* {line}\n" for line in gains(results)))
        return path

    def _cell(self, start: str, seed: int) -> dict[str, float | None]:
        """Points of each measure, None if it is missing."""
        cell = {
            shown: read_run(self.folder / f"{kind}_{start}_{seed}").points(measure)
            for shown, (kind, measure) in MEASURES.items()
        }
        truth = self._data(seed) / "ade/annotations/validation"
        iou = class_iou(self.folder / f"seg_{start}_{seed}" / "predictions", truth, len(SEG_CLASSES))
        return cell | {LEAST: None if iou is None else round(float(iou.min()), 1)}


def table(results: dict[str, list[dict]]) -> str:
    """A Markdown table: each measure of every seed, with and without pretraining."""
    rows = []
    for shown in (*MEASURES, LEAST):
        cells = [
            " / ".join("–" if cell[shown] is None else f"{cell[shown]:.1f}" for cell in results[s]) for s in STARTS
        ]
        rows.append((shown, *cells))
    return markdown_table(("measure", "pretrained", "from scratch"), rows)


def gains(results: dict[str, list[dict]]) -> list[str]:
    """A sentence per measure: the gain of each seed, and whether it exceeds the spread of the seeds.

    It does if the lowest result with pretraining is above the highest without. Fixed before the runs.
    """
    lines = []
    for shown in MEASURES:
        with_, without = ([cell[shown] for cell in results[start]] for start in STARTS)
        if None in (*with_, *without):
            lines.append(f"{shown}: not finished.")
            continue
        each = ", ".join(f"{a - b:+.1f}" for a, b in zip(with_, without, strict=True))
        beyond = "beyond" if min(with_) > max(without) else "within"
        lines.append(f"{shown}: {each}; {beyond} the spread of the seeds.")
    return lines
