"""Makes a configuration for somebody's own images: looks at them, says what it found, checks them, writes a file."""

import shutil
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from arm_backbone import ARM
from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint
from arm_backbone.checkpoint.hub import is_hub_name
from arm_backbone.checkpoint.load import fit_state
from arm_backbone.checkpoint.writing import replacing
from arm_images.errors import DataError, printable

from ..datasets.check_report import by, some
from ..datasets.formats.legend import read_legend
from ..datasets.formats.recognise import OwnData, recognise
from ..errors import ConfigError
from .config import load_config
from .launch import train
from .own_data_choices import MODELS, arch_name, choose, default_model, default_weights, this_machine
from .own_data_config import config_text

REPOSITORY = Path(__file__).resolve().parents[2]
SHOWN = 12  # classes


def new_config(
    data: Path,
    out: Path,
    model: str | None = None,
    weights: str | None = None,
    classes: Path | None = None,
    ignore_zero: bool = False,
    force: bool = False,
    progress: bool = False,
) -> None:
    """Write a configuration that trains on a folder of annotated images, and print what was found.

    What training cannot read as it is, is written to the folder OUT_data beside the configuration; the data set itself
    is never changed.

    Args:
        model: a name of `own_data_choices.MODELS`; None takes that of the weights, or what the machine can train.
        weights: a checkpoint for the backbone; None takes our default one if it is there, else none.
        classes: a file with the names, and colours or numbers, of the classes of label maps (see `legend`).
        ignore_zero: in label maps a stored 0 is ignored and k is the k-th class.
        force: replace OUT and OUT_data if they exist.

    Raises:
        DataError, ConfigError, CheckpointError: in one line, naming file, value and remedy; nothing is written.
    """
    out = out.absolute()
    folder = out.with_name(f"{out.stem}_data")
    if out.suffix != ".py":
        raise ConfigError(f"--out {out}: a configuration is a Python file; give a name that ends in .py")
    there = [path for path in (out, folder) if path.exists()]
    if there and not force:
        raise ConfigError(f"--out {out}: {there[0]} exists; give another name, or --force to replace it")
    if data.resolve() in out.resolve().parents:
        raise ConfigError(f"--out {out} lies in the data set, which stays as it is; write the configuration elsewhere")
    machine = this_machine()
    if weights is not None:
        model = _fitting_model(weights, model)
    model = model or default_model(machine)
    legend = read_legend(classes) if classes is not None else None
    found = recognise(data, legend, ignore_zero, progress)
    print(describe(found))
    made = found.needs_folder
    with replacing(folder) if made else nullcontext(folder) as partial:
        if made:
            found.write(partial)
        _require_sound(found, partial, folder, progress)
        if made and folder.exists():
            shutil.rmtree(folder)
    _move(found, partial, folder)

    start = weights or default_weights(model, REPOSITORY)
    if start is not None and not is_hub_name(start):
        start = Path(start).absolute()  # the configuration works from any folder
    choices = choose(found, machine, model, scratch=start is None)
    text = config_text(found, choices, machine, str(start) if start else None, REPOSITORY, out)
    with replacing(out) as file:
        file.write_text(text, encoding="utf-8")
    _check_config(out)
    print(
        f"{out}: written for {choices.model}, {'weights of ' + str(start) if start else 'from scratch'}"
        + (f"; {folder} holds what training reads beside your data" if made else "")
    )


def _fitting_model(weights: str, model: str | None) -> str:
    """The model that weights are for: the one that is given, or the first that they fit."""
    state = model_state(read_checkpoint(weights, mmap=True), where=weights)
    errors = []
    for name in [model] if model else MODELS:
        try:
            with torch.device("meta"):
                fit_state(ARM(arch=arch_name(name), scans=4), state, weights)
            return name
        except CheckpointError as error:
            errors.append(error)
    if model:
        raise errors[0]
    raise CheckpointError(f"{weights} fits none of {', '.join(MODELS)} ({errors[0]}); give weights of one of these")


def _require_sound(data: OwnData, partial: Path, folder: Path, progress: bool) -> None:
    """Print the check of the data, and stop at errors."""
    reports = data.check(progress)
    for report in reports:
        print(str(report).replace(str(partial), str(folder)))
    faults = [f"{report.what}: {error}" for report in reports for error in report.errors]
    if faults:
        more = f" (and {len(faults) - 1} more, above)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0].replace(str(partial), str(folder))}{more}; repair that, nothing is written")


def _move(data: OwnData, old: Path, new: Path) -> None:
    """Name what was written by its final place."""
    for part in data.parts.values():
        for key, value in vars(part).items():
            if isinstance(value, Path) and value.is_relative_to(old):
                setattr(part, key, new / value.relative_to(old))


def _check_config(out: Path) -> None:
    """Check the written file as `tools/train.py --check` does; a file that fails is removed."""
    args = Namespace(
        check=True, work_dir=None, resume=None, auto_scale_lr=False, amp=False, launcher="none", local_rank=0
    )
    try:
        train(load_config(str(out)), args, out.stem)
    except BaseException:
        out.unlink()
        raise


def describe(data: OwnData) -> str:
    """What was found, in lines: layout, splits, sizes, classes, and what is odd."""
    unit = {"detection": "objects", "segmentation": "% of the pixels", "classification": "images"}[data.task]
    sizes = data.image_sizes()
    low, middle, high = (by(tuple(int(side) for side in of(sizes, axis=0))) for of in (np.min, np.median, np.max))
    lines = [
        f"{data.root}: {data.layout}, for {data.task}",
        f"  images: {', '.join(f'{count} in {split}' for split, count in data.counts().items())}",
        f"  sizes: {middle} (median), {low} to {high}",
    ]
    if data.task == "detection":
        sides = np.percentile(data.object_sides(), [10, 50, 90])
        masks = "with masks" if data.masks else "boxes only"
        lines.append(f"  objects: {masks}; sides of {sides[0]:.0f} to {sides[2]:.0f} pixels, median {sides[1]:.0f}")
    train, val = data.per_class("train"), data.per_class("val")
    ranked = sorted(train, key=train.__getitem__, reverse=True)
    lines.append(f"  {len(data.classes)} classes ({unit} in train, val):")
    shown = ranked if len(ranked) <= SHOWN else [*ranked[: SHOWN - 2], None, *ranked[-2:]]
    for name in shown:
        numbers = "" if name is None else f"{train[name]:.4g}, {val.get(name, 0):.4g}"
        lines.append(f"    {name}: {numbers}" if name is not None else f"    ... {len(ranked) - SHOWN} more ...")
    for split, counts in (("train", train), ("val", val)):
        absent = [name for name in data.classes if not counts.get(name)]
        if absent:
            lines.append(f"  note: {len(absent)} classes do not occur in {split}{some(absent)}")
    return printable("\n".join(lines + [f"  note: {note}" for note in data.notes]))
