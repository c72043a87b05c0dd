"""The configuration's own test pipeline, without what loads labels, for images that are read already.

So an image is resized, normalized and packed as in `tools/test.py`.
"""

import re
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import TRANSFORMS
from timm.data import create_transform

from arm_images.errors import DataError
from arm_images.pillow import Image
from arm_images.read import read_rgb, reason

from ..datasets.checked_pipeline import CheckedPipeline
from ..datasets.transforms import LoadImage
from ..engine.checks import named_dicts
from ..errors import ConfigError
from .build import Trained, building

LOADS_IMAGE = re.compile(r"(\w+\.)?LoadImage(FromFile)?")
LOADS_LABELS = re.compile(r"(\w+\.)?(Load|Filter)\w*(Annotations|Labels)")


class DensePipeline:
    """Prepares images for a detector or segmentor of OpenMMLab.

    Args:
        tta: use `tta_pipeline` in place of the test data set's pipeline.

    Raises:
        ConfigError: if the configuration has no such pipeline, or it cannot be built.
    """

    def __init__(self, trained: Trained, tta: bool) -> None:
        steps, key = _steps(trained, tta)
        steps = trained.part(steps, key)
        first = steps[0] if isinstance(steps, list) and steps else None
        if not isinstance(first, dict) or not LOADS_IMAGE.fullmatch(str(first.get("type"))):
            raise ConfigError(f"{trained.where}: {key} must begin with LoadImageFromFile, so that images can be read")
        if first.get("color_type", "color") != "color":
            raise ConfigError(f"{trained.where}: {key}: color_type={first['color_type']!r}; only 'color' is supported")
        with building(trained, key):
            self.loading = LoadImage(**{k: value for k, value in first.items() if k not in ("type", "on_error")})
            built = [TRANSFORMS.build(step) for step in _without_labels(steps[1:])]
        self._steps = CheckedPipeline(built, most=0)
        self._where = f"{trained.where}: {key}"
        self._tta = tta

    def read(self, path: str) -> np.ndarray:
        """Decode a file as in training: upright (H, W, 3), RGB. Raises whatever the decoder raises."""
        return self.loading.read(path)[..., ::-1]

    def prepare(self, image: np.ndarray, name: str) -> dict:
        """An image (H, W, 3), RGB, as the model takes it; a DataError names it if a transform fails."""
        image = np.ascontiguousarray(image[..., ::-1], np.float32 if self.loading.to_float32 else np.uint8)
        size = image.shape[:2]
        known = dict(img_path=name, img_id=0, seg_fields=[], reduce_zero_label=False)
        item = self._steps(known | dict(img=image, img_shape=size, ori_shape=size))
        if "inputs" not in item:
            raise ConfigError(f"{self._where} must end with a transform that packs inputs, such as PackSegInputs")
        return item

    def size(self, item: dict) -> tuple:
        """What must be equal in a batch: the size of the model's input, or of all augmented ones."""
        return tuple(view.shape for view in item["inputs"]) if self._tta else tuple(item["inputs"].shape)

    def collate(self, items: list[dict]) -> dict:
        return pseudo_collate(items)


class ClassifierPipeline:
    """Prepares images for a classifier, with the transform of the configuration's test data set."""

    def __init__(self, trained: Trained, tta: bool) -> None:
        if tta:
            raise ConfigError("test-time augmentation is for detectors and segmentors, not for classifiers")
        dataset = (trained.cfg.get("test_dataloader") or {}).get("dataset") or {}
        if not isinstance(dataset.get("transform"), dict):
            raise ConfigError(f"{trained.where}: its configuration has no test_dataloader.dataset.transform")
        arguments = trained.part(dataset.transform, "test_dataloader.dataset.transform")
        with building(trained, "test_dataloader.dataset.transform"):
            self._transform = create_transform(**arguments)

    def read(self, path: str) -> np.ndarray:
        """Decode a file as in training: upright (H, W, 3), RGB. Raises whatever the decoder raises."""
        return np.asarray(read_rgb(Path(path)))

    def prepare(self, image: np.ndarray, name: str) -> dict:
        """An image (H, W, 3), RGB, as the model takes it; a DataError names it if the transform fails."""
        try:
            return dict(inputs=self._transform(Image.fromarray(image)))
        except Exception as error:  # noqa: BLE001 a transform can raise anything
            raise DataError(f"{name} cannot be prepared ({type(error).__name__}: {reason(error)})") from error

    def size(self, item: dict) -> tuple:
        return tuple(item["inputs"].shape)

    def collate(self, items: list[dict]) -> dict:
        return dict(inputs=torch.stack([item["inputs"] for item in items]))


def _steps(trained: Trained, tta: bool) -> tuple[list, str]:
    if tta:
        if not trained.cfg.get("tta_model") or not trained.cfg.get("tta_pipeline"):
            raise ConfigError(f"--tta: the configuration of {trained.where} has no tta_model and tta_pipeline")
        return trained.cfg.tta_pipeline, "tta_pipeline"
    loader = trained.cfg.get("test_dataloader") or {}
    for where, node in named_dicts(loader.get("dataset"), "test_dataloader.dataset"):
        if node.get("pipeline"):
            return node.pipeline, f"{where}.pipeline"
    raise ConfigError(
        f"{trained.where}: its configuration has no test_dataloader.dataset.pipeline, which prepares images"
    )


def _without_labels(steps: list) -> list:
    """Transforms without those that load or filter labels; lists of choices that become empty are left out."""
    kept = []
    for step in steps:
        if isinstance(step, list | tuple):
            inner = _without_labels(step)
            kept += [inner] if inner or not step else []
        elif not LOADS_LABELS.fullmatch(str(step.get("type"))):
            inner = {"transforms": _without_labels(step["transforms"])} if "transforms" in step else {}
            kept.append(step | inner)
    return kept
