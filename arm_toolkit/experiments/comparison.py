"""Choices of pretraining compared on photographs, judged by segmentation of a drive left out of training.

One cell is one pretraining (or none) with one seed: pretrain, convert, finetune UperNet, train a linear probe on the
frozen encoder, evaluate both. The equal-compute cell finetunes from scratch for as long as the arm "arm" pretrained and
finetuned together.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from arm_images.errors import DataError

from .figures import smooth
from .runs import class_iou, read_losses
from .steps import Spent, Step, run_steps

ARMS = {  # name -> pretraining configuration
    "arm": "pretrain/configs/photographs/arm.py",
    "star": "pretrain/configs/photographs/star.py",
    "order_random": "pretrain/configs/photographs/order_random.py",
    "patch_units": "pretrain/configs/photographs/patch_units.py",
    "target_pixels": "pretrain/configs/photographs/target_pixels.py",
    "none": None,
}
FINETUNE, PROBE = (f"seg_configs/photographs/{name}_camvid_drive.py" for name in ("upernet", "linear"))
EQUAL_COMPUTE = "none_equal_compute"
# Written down before the runs: pretraining helps if every seed gains, and on average at least this many points of mIoU
CRITERION = dict(finetune=1.0, probe=2.0)


@dataclass(frozen=True)
class Comparison:
    """What to compare on.

    Attributes:
        folder: for everything that is made.
        photographs, prefix: list file for pretraining, and the folder that its lines start from.
        camvid: folder in ADE's layout.
        held_out: what the names of the left-out drive's frames begin with.
        options: configuration keys for every pretraining, e.g. to make it shorter.
        finetune_iters: of every finetuning and probe.
    """

    folder: Path
    photographs: Path
    prefix: Path
    camvid: Path
    held_out: str
    seeds: tuple[int, ...] = (0, 1)
    options: tuple[str, ...] = ()
    finetune_iters: int = 250

    def write_lists(self) -> None:
        """The photographs without the left-out drive, and CamVid's training frames in two.

        Raises:
            DataError: if a folder or file is missing, or no frame or every frame is of the left-out drive.
        """
        folder = self.camvid / "images/training"
        frames = sorted(path.stem for path in folder.glob("*.jpg"))
        if not frames or not (self.camvid / "meta.json").is_file():
            raise DataError(f"--camvid {self.camvid}: needs images/training/*.jpg and meta.json with the classes")
        held_out = [name for name in frames if name.startswith(self.held_out)]
        if not held_out or len(held_out) == len(frames):
            raise DataError(
                f"--held-out {self.held_out}: {len(held_out)} of {len(frames)} frames in {folder} begin so; "
                "give the beginning of one drive's names"
            )
        if not self.photographs.is_file():
            raise DataError(f"--photographs {self.photographs} does not exist; give a text file with one path a line")
        lines = [line.strip() for line in self.photographs.read_text().splitlines() if line.strip()]
        photographs = [line for line in lines if Path(line).stem not in set(held_out)]
        self.folder.mkdir(parents=True, exist_ok=True)
        training = [name for name in frames if name not in set(held_out)]
        for name, content in zip(("photographs", "training", "held_out"), (photographs, training, held_out)):
            (self.folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in content))

    def _judged(self, cell: str, seed: int, start: Path | None, kinds: dict[str, str], needs: str | None, iters: int):
        """Steps that train and test the judges of `kinds` (name -> configuration) from a backbone, or from scratch."""
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

    def steps(self) -> list[Step]:
        """Of all cells but the one of equal compute, which waits for their times."""
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
        """From scratch with the first seed, as many iterations as the CPU seconds of ARM's two trainings allow."""
        seed = self.seeds[0]
        pretraining, finetuning = (spent[f"arm_{seed}_{kind}"].cpu_seconds for kind in ("pretrain", "finetune"))
        iters = round(self.finetune_iters * (pretraining + finetuning) / finetuning)
        return [*self._judged(f"{EQUAL_COMPUTE}_{seed}", seed, None, dict(finetune=FINETUNE), None, iters)]

    def run(self) -> Path:
        """Run what is not finished, then write table.md and results.json: the former's path.

        Raises:
            DataError: see `write_lists`.
            ConfigError: if a step fails.
        """
        self.write_lists()
        steps = self.steps()
        spent = run_steps(steps, self.folder)
        spent |= run_steps(self.equal_compute_steps(spent), self.folder)
        return self.report(spent)

    def scores(self, cell: str, kind: str) -> dict | None:
        """mIoU and the classes' IoU in percent, or None if the cell has no such judge."""
        results = sorted((self.folder / cell / kind / "test").glob("*/*.json"))
        if not results:
            return None
        names = (self.folder / "held_out.txt").read_text().split()
        iou = class_iou(
            self.folder / cell / kind / "predictions", self.camvid / "annotations/training", self._classes(), names
        )
        return dict(mIoU=json.loads(results[-1].read_text())["mIoU"], classes=[round(float(x), 1) for x in iou])

    def _classes(self) -> int:
        return len(json.loads((self.camvid / "meta.json").read_text())["classes"])

    def report(self, spent: dict[str, Spent]) -> Path:
        """Write results.json, curves.png and table.md (its path) of what is finished; the rest shows as a dash."""
        results = {}
        for arm in (*ARMS, EQUAL_COMPUTE):
            results[arm] = {
                seed: {
                    **{kind: self.scores(f"{arm}_{seed}", kind) for kind in CRITERION},
                    "pretraining_loss": [x for _, x in read_losses(self.folder / f"{arm}_{seed}" / "pretrain")][-1:],
                    "cpu_seconds": {
                        kind: spent[f"{arm}_{seed}_{kind}"].cpu_seconds
                        for kind in ("pretrain", "finetune", "probe")
                        if f"{arm}_{seed}_{kind}" in spent
                    },
                }
                for seed in self.seeds
            }
        (self.folder / "results.json").write_text(json.dumps(results, indent=1))
        self.curves().savefig(self.folder / "curves.png", dpi=110)
        path = self.folder / "table.md"
        path.write_text("\n".join([*table(results, self.seeds), "", *verdict(results, self.seeds)]) + "\n")
        return path

    def curves(self) -> Figure:
        """Losses of pretraining, smoothed, and of finetuning: a colour for an arm, a line for a seed."""
        figure = Figure(figsize=(9, 3), layout="constrained")
        titles = dict(pretrain="loss of pretraining (of different targets)", finetune="loss of finetuning")
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


def table(results: dict, seeds: tuple[int, ...]) -> list[str]:
    """Markdown rows: mIoU of every seed, and the mean difference from no pretraining."""
    lines = [
        "| pretraining | finetuned, mIoU | gain | linear probe, mIoU | gain | CPU minutes |",
        "|---|---|---|---|---|---|",
    ]
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
        lines.append(f"| {' | '.join(row)} |")
    return lines


def differences(results: dict, arm: str, kind: str, seeds: tuple[int, ...]) -> list[float]:
    """mIoU with this pretraining minus that without, seed by seed."""
    pairs = [(results[arm][seed][kind], results["none"][seed][kind]) for seed in seeds]
    return [a["mIoU"] - b["mIoU"] for a, b in pairs if a and b]


def verdict(results: dict, seeds: tuple[int, ...]) -> list[str]:
    """The criterion, and whether ARM's own pretraining meets it."""
    lines = []
    for kind, least in CRITERION.items():
        gains = differences(results, "arm", kind, seeds)
        if len(gains) < len(seeds):
            lines.append(f"{kind}: not finished")
            continue
        met = "met" if min(gains) > 0 and statistics.mean(gains) >= least else "not met"
        shown = ", ".join(f"{x:+.2f}" for x in gains)
        lines.append(f"{kind}: gains of ARM {shown}; wanted: all positive, mean at least {least}: {met}")
    return lines
