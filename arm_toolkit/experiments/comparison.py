"""Compares choices of pretraining on photographs, evaluated by segmentation of a drive that no training uses.

One cell is one choice of pretraining (or none) with one seed: pretrain, convert, finetune UperNet, train a linear probe
on the frozen encoder, evaluate both. The equal-compute cell trains UperNet from scratch with the CPU time that "arm"
spends on pretraining and finetuning together.
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
from .steps import Spent, Step, run_steps

ARMS = {  # choice of pretraining (an arm of the experiment) -> configuration
    "arm": "pretrain/configs/photographs/arm.py",
    "star": "pretrain/configs/photographs/star.py",
    "order_random": "pretrain/configs/photographs/order_random.py",
    "patch_units": "pretrain/configs/photographs/patch_units.py",
    "target_pixels": "pretrain/configs/photographs/target_pixels.py",
    "none": None,
}
FINETUNE = "seg_configs/photographs/upernet_camvid_drive.py"
PROBE = "seg_configs/photographs/linear_camvid_drive.py"
EQUAL_COMPUTE = "none_equal_compute"
# Fixed before the runs: pretraining helps if every seed gains, and the mean gain is at least this many points of mIoU
CRITERION = dict(finetune=1.0, probe=2.0)


@dataclass(frozen=True)
class Comparison:
    """The data and the size of a comparison.

    Attributes:
        folder: receives all results.
        photographs: list file of the images for pretraining.
        prefix: folder that the paths in the list file are relative to.
        camvid: segmentation data in ADE's layout.
        held_out: prefix of the frame names of the held-out drive.
        seeds: each choice of pretraining is run once per seed.
        options: `--cfg-options` of every pretraining, e.g. to shorten it.
        finetune_iters: iterations of every finetuning and probe.
    """

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

    def steps(self) -> list[Step]:
        """The steps of all cells except equal compute, which depends on their times."""
        steps, kinds = [], dict(finetune=FINETUNE, probe=PROBE)
        for seed in self.seeds:
            for arm, config in ARMS.items():
                cell = f"{arm}_{seed}"
                if config is None:
                    steps += self._judged(cell, seed, None, kinds, None, self.finetune_iters)
                    continue
                work_dir, backbone = self.folder / cell / "pretrain", self.folder / cell / "backbone.pth"
                pretrain = ("tools/pretrain.py", config, "--data", str(self.folder / "photographs.txt"))
                pretrain += ("--data-prefix", str(self.prefix), "--work-dir", str(work_dir), "--amp")
                pretrain += ("--cfg-options", f"randomness.seed={seed}", *self.options)
                steps.append(Step(f"{cell}_pretrain", pretrain, (), work_dir, (self.folder / "photographs.txt",)))
                convert = ("tools/convert_checkpoint.py", f"@{work_dir}", str(backbone), "--to", "backbone")
                steps.append(Step(f"{cell}_convert", convert, (f"{cell}_pretrain",)))
                steps += self._judged(cell, seed, backbone, kinds, f"{cell}_convert", self.finetune_iters)
        return steps

    def equal_compute_steps(self, spent: dict[str, Spent]) -> list[Step]:
        """UperNet from scratch with the first seed, for the CPU time of ARM's pretraining and finetuning."""
        seed = self.seeds[0]
        pretraining, finetuning = (spent[f"arm_{seed}_{kind}"].cpu_seconds for kind in ("pretrain", "finetune"))
        iters = round(self.finetune_iters * (pretraining + finetuning) / finetuning)
        return [*self._judged(f"{EQUAL_COMPUTE}_{seed}", seed, None, dict(finetune=FINETUNE), None, iters)]

    def _judged(
        self, cell: str, seed: int, start: Path | None, kinds: dict[str, str], needs: str | None, iters: int
    ) -> Iterator[Step]:
        """Steps that train and test each of `kinds` (name -> configuration), from the backbone `start` if given."""
        data, lists = self.camvid.resolve(), self.folder.resolve()
        options = [f"randomness.seed={seed}", f"train_cfg.max_iters={iters}", f"param_scheduler.1.end={iters}"]
        options += [f"train_cfg.val_interval={iters + 1}", f"default_hooks.checkpoint.interval={iters}"]
        for part, name in (("train", "training"), ("val", "held_out"), ("test", "held_out")):
            dataset = f"{part}_dataloader.dataset"
            options += [f"{dataset}.data_root={data}", f"{dataset}.ann_file={lists / name}.txt"]
        options.append("model.backbone.init_cfg" + (f".checkpoint={start}" if start else "=None"))
        for kind, config in kinds.items():
            work_dir = self.folder / cell / kind
            common = ("--cfg-options", *options)
            train = ("tools/train.py", config, "--work-dir", str(work_dir), "--amp", *common)
            test = ("tools/test.py", config, f"@{work_dir}", "--work-dir", str(work_dir / "test"))
            test += ("--out", str(work_dir / "predictions"), *common)
            training, held_out = lists / "training.txt", lists / "held_out.txt"
            yield Step(f"{cell}_{kind}", train, (needs,) if needs else (), work_dir, (training,))
            yield Step(f"{cell}_{kind}_test", test, (f"{cell}_{kind}",), work_dir / "test", (held_out,))

    def write_results(self, spent: dict[str, Spent]) -> Path:
        """Write results.json, curves.png and table.md of the finished steps; return the path of table.md.

        A missing result is shown as a dash.

        Args:
            spent: the cost of each finished step, by name.

        Raises:
            DataError: if a file of results is incomplete.
        """
        results = {
            arm: {seed: self._cell_results(f"{arm}_{seed}", spent) for seed in self.seeds}
            for arm in (*ARMS, EQUAL_COMPUTE)
        }
        with replacing(self.folder / "results.json") as partial:
            partial.write_text(json.dumps(results, indent=1))
        with replacing(self.folder / "curves.png") as partial:
            self.curves().savefig(partial, dpi=110, format="png")
        path = self.folder / "table.md"
        with replacing(path) as partial:
            partial.write_text("\n".join([table(results, self.seeds), "", *verdict(results, self.seeds)]) + "\n")
        return path

    def _cell_results(self, cell: str, spent: dict[str, Spent]) -> dict:
        kinds = [kind for kind in ("pretrain", "finetune", "probe") if f"{cell}_{kind}" in spent]
        return {
            **{kind: self.scores(cell, kind) for kind in CRITERION},
            "pretraining_loss": [x for _, x in read_losses(self.folder / cell / "pretrain")][-1:],
            "cpu_seconds": {kind: spent[f"{cell}_{kind}"].cpu_seconds for kind in kinds},
        }

    def scores(self, cell: str, kind: str) -> dict | None:
        """mIoU and the IoU of each class in percent; None if this training of the cell has not been tested."""
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
            for index, arm in enumerate(ARMS):
                for seed in self.seeds:
                    losses = read_losses(self.folder / f"{arm}_{seed}" / kind)
                    if losses:
                        label = arm if seed == self.seeds[0] else None
                        steps, values = zip(*losses)
                        axis.plot(steps, smooth(values), color=f"C{index}", linewidth=0.8, label=label)
            axis.set_xlabel("iteration", fontsize=7)
            axis.set_title(title, fontsize=8)
            axis.tick_params(labelsize=6)
            axis.legend(fontsize=6)
        return figure


def table(results: dict, seeds: tuple[int, ...]) -> str:
    """A Markdown table: mIoU of every seed, and the mean difference from no pretraining."""
    rows = []
    for arm, cells in results.items():
        row = [arm]
        for kind in CRITERION:
            values = [cells[seed][kind]["mIoU"] for seed in seeds if cells[seed][kind]]
            row.append(" / ".join(f"{x:.1f}" for x in values) or "-")
            gains = differences(results, arm, kind, seeds)
            row.append(f"{statistics.mean(gains):+.1f}" if gains and arm != "none" else "-")
        minutes = [sum(x for k, x in cells[seed]["cpu_seconds"].items() if k != "probe") / 60 for seed in seeds]
        minutes = [x for x in minutes if x]  # equal compute has one seed
        row.append(f"{statistics.mean(minutes):.1f}" if minutes else "-")
        rows.append(row)
    columns = ("pretraining", "finetuned, mIoU", "finetuned, gain", "linear probe, mIoU", "linear probe, gain")
    return markdown_table((*columns, "CPU minutes"), rows)


def differences(results: dict, arm: str, kind: str, seeds: tuple[int, ...]) -> list[float]:
    """mIoU with this pretraining minus mIoU without, for each seed that has both."""
    pairs = [(results[arm][seed][kind], results["none"][seed][kind]) for seed in seeds]
    return [a["mIoU"] - b["mIoU"] for a, b in pairs if a and b]


def verdict(results: dict, seeds: tuple[int, ...]) -> list[str]:
    """Lines that say whether ARM's own pretraining meets the criterion, for finetuning and for the probe."""
    lines = []
    for kind, least in CRITERION.items():
        gains = differences(results, "arm", kind, seeds)
        if len(gains) < len(seeds):
            lines.append(f"{kind}: not finished")
            continue
        met = "met" if min(gains) > 0 and statistics.mean(gains) >= least else "not met"
        shown = ", ".join(f"{x:+.2f}" for x in gains)
        lines.append(f"{kind}: ARM gains {shown}; criterion (all positive, mean at least {least}): {met}")
    return lines
