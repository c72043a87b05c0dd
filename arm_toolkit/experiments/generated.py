"""The trainings on generated images that the quickstart and its comparison over several seeds share."""

import hashlib
import json
from pathlib import Path

from ..datasets.shapes import VERSION
from ..engine.config import load_config
from .steps import FASTER, ROOT, Step

PRETRAIN = "pretrain/configs/quickstart.py"
DET = "det_configs/quickstart_mask_rcnn.py"
SEG = "seg_configs/quickstart_upernet.py"


def pretraining_steps(data: Path, folder: Path, backbone: Path, seed: int | None = None) -> list[Step]:
    """Draw the data set, pretrain on its images and convert the result.

    Args:
        data: folder of the data set.
        folder: work directory of the pretraining.
        backbone: checkpoint to write.
        seed: of data and training; those of the configurations if None.
    """
    suffix = "" if seed is None else f"_{seed}"
    shapes = ("tools/prepare_data.py", "shapes", str(data), *(() if seed is None else ("--seed", str(seed))))
    pretrain = ("tools/pretrain.py", PRETRAIN, "--work-dir", str(folder), FASTER)
    if seed is not None:
        pretrain += ("--data", str(data / "coco/train2017"), "--cfg-options", f"randomness.seed={seed}")
    convert = ("tools/convert_checkpoint.py", f"@{folder}", str(backbone), "--to", "backbone")
    return [
        Step(f"shapes{suffix}", shapes),
        Step(f"pretrain{suffix}", pretrain, (f"shapes{suffix}",), folder, alone=True),
        Step(f"convert{suffix}", convert, (f"pretrain{suffix}",)),
    ]


def training_steps(folder: Path, config: str, needs: str, options: tuple[str, ...] = ()) -> list[Step]:
    """Train a detector or segmentor in `folder` and test it; the steps are called NAME and NAME_test as the folder.

    Args:
        config: `DET` or `SEG`.
        needs: the step that writes what the training starts from.
        options: `--cfg-options`.
    """
    out = folder / ("predictions.json" if config == DET else "predictions")
    overrides = ("--cfg-options", *options) if options else ()
    train = ("tools/train.py", config, "--work-dir", str(folder), FASTER, *overrides)
    test = ("tools/test.py", config, f"@{folder}", "--work-dir", str(folder / "test"), "--out", str(out), *overrides)
    return [
        Step(folder.name, train, (needs,), folder),
        Step(f"{folder.name}_test", test, (folder.name,), folder / "test"),
    ]


def settings() -> str:
    """A digest of what decides the results, except code and machine: version of the data set and configurations."""
    configs = [load_config(str(ROOT / path)).to_dict() for path in (PRETRAIN, DET, SEG)]
    content = json.dumps([VERSION, configs], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
