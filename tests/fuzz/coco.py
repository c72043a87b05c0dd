"""COCO files mutated field by field, through the check and two training iterations."""

import json
import random
from pathlib import Path

from arm_toolkit.datasets.check import check_coco
from tests.fuzz.mutate import mutate_json
from tests.fuzz.session import compare_with_check, quiet
from tests.helpers.runs import det_config


class CocoCase:
    """One mutated annotation file: what the check passes must train, with as many objects as the check counted.

    Args:
        shapes: folder of the generated data set.
        folder: for the files of a case.
    """

    def __init__(self, shapes: Path, folder: Path) -> None:
        self.images, self.folder = shapes / "coco/train2017", folder
        self.content = json.loads((shapes / "coco/annotations/instances_train2017.json").read_text())
        self.file = folder / "instances.json"
        self.cfg = det_config(shapes)
        self.cfg.train_cfg.max_epochs = 1
        self.cfg.train_dataloader.dataset.ann_file = str(self.file)
        self.cfg.train_dataloader.batch_size = 8
        quiet(self.cfg)

    def __call__(self, rng: random.Random) -> tuple[str, str]:
        content, what = mutate_json(self.content, rng)
        text = json.dumps(content)
        if rng.random() < 0.02:
            text, what = text[: rng.randrange(len(text))], "cut off"
        self.file.write_text(text)
        report = check_coco(self.file, self.images)
        return compare_with_check(what, report, self.cfg, self.folder / "run")
