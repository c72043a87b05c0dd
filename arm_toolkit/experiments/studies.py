"""What is compared on photographs: choices of pretraining, the trainings that judge them, and when a gain counts."""

import statistics
from dataclasses import dataclass

FINETUNE = "seg_configs/photographs/upernet_camvid_drive.py"
PROBE = "seg_configs/photographs/linear_camvid_drive.py"
MEASURES = dict(finetune="finetuned", probe="linear probe", knn="k-NN")  # measure -> name in the table


@dataclass(frozen=True)
class Choice:
    """One choice of pretraining (an arm of the experiment).

    Attributes:
        config: configuration of the pretraining; None trains from scratch.
        baseline: the choice without pretraining that it is compared with.
        seeds: how many of the comparison's seeds it is run with, the first ones; None is all.
        finetune, probe: configurations of the trainings that judge it.
        convert: further arguments of the conversion into a backbone.
    """

    config: str | None
    baseline: str = "none"
    seeds: int | None = None
    finetune: str = FINETUNE
    probe: str = PROBE
    convert: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """Choices that are compared with each other.

    Attributes:
        choices: by name.
        measures: of `MEASURES`, those that are taken.
        pairs: (choice, other) whose difference gets a verdict.
        least: measure -> smallest mean gain that counts, if every seed gains. None: a gain (or loss) counts if the
            lowest result of the one is above the highest of the other.
        equal_compute: whether the first seed also trains from scratch for as long as pretraining and finetuning take.
    """

    choices: dict[str, Choice]
    measures: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    least: dict[str, float] | None = None
    equal_compute: bool = False

    def verdict(self, measure: str, values: list[float], others: list[float]) -> str:
        """Say whether a choice gains on another: the difference of each seed, and whether it counts.

        Args:
            values, others: results of the choice and of the other in points, a number per seed.
        """
        gains = [a - b for a, b in zip(values, others, strict=True)]
        shown = ", ".join(f"{gain:+.2f}" for gain in gains)
        if len(gains) < 2:
            return f"{shown}; one seed, no verdict"
        if self.least is None:
            found = "a gain" if min(values) > max(others) else "a loss" if max(values) < min(others) else None
            return f"{shown}; {f'{found} beyond' if found else 'within'} the spread of the seeds"
        least = self.least[measure]
        met = min(gains) > 0 and statistics.mean(gains) >= least
        return f"{shown}; criterion (all positive, mean at least {least}): {'met' if met else 'not met'}"


_VIM = dict(
    finetune="seg_configs/photographs/upernet_vim_camvid_drive.py",
    probe="seg_configs/photographs/linear_vim_camvid_drive.py",
    seeds=1,
    baseline="vim_none",
)

# The criteria were fixed before the runs
STUDIES = {
    "variants": Study(
        choices={
            "arm": Choice("pretrain/configs/photographs/arm.py"),
            "star": Choice("pretrain/configs/photographs/star.py"),
            "order_random": Choice("pretrain/configs/photographs/order_random.py"),
            "patch_units": Choice("pretrain/configs/photographs/patch_units.py"),
            "target_pixels": Choice("pretrain/configs/photographs/target_pixels.py"),
            "none": Choice(None),
        },
        measures=("finetune", "probe"),
        pairs=(("arm", "none"),),
        least=dict(finetune=1.0, probe=2.0),
        equal_compute=True,
    ),
    "paradigms": Study(
        choices={
            "arm": Choice("pretrain/configs/photographs/arm.py"),
            "mae": Choice("pretrain/configs/photographs/mae.py"),
            "none": Choice(None),
            # the backbones that judge it have no class token
            "moco": Choice("pretrain/configs/photographs/moco.py", seeds=1, convert=("--cls-token", "none")),
            "vim_arm": Choice("pretrain/configs/photographs/vim.py", **_VIM),
            "vim_none": Choice(None, **_VIM),
        },
        measures=("finetune", "probe", "knn"),
        pairs=(("arm", "none"), ("mae", "none"), ("arm", "mae")),
    ),
}
