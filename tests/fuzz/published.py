"""Published folders whose config.json is mutated, through loading and prediction."""

import json
import random
import shutil
from pathlib import Path

import numpy as np

from arm_toolkit.errors import user_errors
from arm_toolkit.inference import load
from tests.fuzz.mutate import mutate_bytes, mutate_json
from tests.fuzz.session import Fault
from tests.helpers.published import publish_small

IMAGE = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)


class PublishedCase:
    """One folder of a detector, segmentor or classifier with a mutated configuration, or mutated weights.

    Args:
        shapes: folder of the generated data set.
        folder: for the files of a case.
    """

    def __init__(self, shapes: Path, folder: Path) -> None:
        self.published = [publish_small(kind, shapes, folder / kind).folder for kind in ("det", "seg", "cls")]
        self.folder = folder / "mutated"

    def __call__(self, rng: random.Random) -> tuple[str, str]:
        shutil.rmtree(self.folder, ignore_errors=True)
        source = rng.choice(self.published)
        shutil.copytree(source, self.folder)
        what = f"{source.parent.name}, {self._mutate(rng)}"
        try:
            predictor = load(self.folder)
        except user_errors() as error:
            if len(str(error).splitlines()) != 1 or str(self.folder) not in str(error):
                raise Fault(f"{what}: the error is no line that names the folder: {error}") from error
            return f"{what}: {error}", "named error"
        try:
            predictor(IMAGE)  # finds values such as a stride of 0
        except user_errors() as error:
            return f"{what}: {error}", "named error of the prediction"
        return what, "passes"

    def _mutate(self, rng: random.Random) -> str:
        if rng.random() < 0.2:
            file = self.folder / rng.choice(("config.json", "model.safetensors"))
            content, what = mutate_bytes(file.read_bytes(), rng)
            file.write_bytes(content)
            return f"{file.name}: {what}"
        file = self.folder / "config.json"
        content = json.loads(file.read_text())
        content["arm"], what = mutate_json(content["arm"], rng)
        file.write_text(json.dumps(content))
        return what
