"""A trained model that takes images and gives results.

Legend: B images, H x W pixels, C classes, n objects.
"""

import functools
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import MODELS
from torch import Tensor

from arm_backbone.openmmlab import Classifier
from arm_images.errors import DataError
from arm_images.pillow import UnidentifiedImageError
from arm_images.read import reason

from ..engine.arguments import DTYPES
from ..engine.precision import bfloat16_autocast, prepare_for_bfloat16
from ..engine.structure import TASKS
from ..errors import ConfigError, NotFinite, one_line, user_errors
from .build import Trained, build_module, building
from .classes import find_classes
from .images import as_rgb
from .pipeline import ClassifierPipeline, DensePipeline
from .results import ClassificationResult, DetectionResult, Result, SegmentationResult


@dataclass(frozen=True)
class Item:
    """An image that is ready for the model.

    Attributes:
        data: what the test pipeline makes of it.
        size: (H, W) of the image.
        path: its file, None if it has none.
    """

    data: dict
    size: tuple[int, int]
    path: str | None


class Predictor:
    """A trained detector, segmentor or classifier. Call it with an image, or with a list of images.

    Several threads may call one predictor at the same time. Results are those of `tools/test.py`: the configuration's
    own test pipeline prepares the images.

    Args:
        trained: from `build.find`.
        device, tta, window, dtype: see `arm_toolkit.inference.load`.

    Attributes:
        task: "detection", "segmentation" or "classification".
        classes: names, in the order of their numbers.
        palette: a colour (R, G, B) for each class.
        reduce_zero_label: whether label maps on disk store class k as k + 1, and 0 means "ignored".
        model: the module, in evaluation mode; with bfloat16 it runs under `engine.precision.bfloat16_autocast` only.
        cfg: its configuration.

    Raises:
        ConfigError, CheckpointError: naming what is missing or does not fit, and the remedy.
    """

    def __init__(
        self,
        trained: Trained,
        device: str | None = None,
        *,
        tta: bool = False,
        window: int | None = None,
        dtype: str = "float32",
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r}: give {' or '.join(map(repr, DTYPES))}")
        self.cfg = trained.cfg
        self._trained = trained
        self.device = _device(device)
        self.model = build_module(trained)
        self.task = _task(trained, self.model)
        self.model.to(self.device)
        self._autocast = nullcontext
        if dtype == "bfloat16":
            prepare_for_bfloat16(self.model)
            self._autocast = functools.partial(bfloat16_autocast, self.model)
        found = find_classes(trained)
        self.classes, self.palette, self.reduce_zero_label = found.names, found.palette, found.reduce_zero_label
        if window is not None:
            _slide(self.model, self.task, window)
        self._pipeline = (ClassifierPipeline if self.task == "classification" else DensePipeline)(trained, tta)
        self._tested = self.model
        if tta:
            with building(trained, "tta_model"):
                wrapper = trained.part(trained.cfg.tta_model, "tta_model")
                self._tested = MODELS.build(dict(wrapper, module=self.model)).eval()
        self._tta = tta

    def __call__(self, images: object, *, batch_size: int = 1, bgr: bool = False) -> Result | list[Result]:
        """Predict one image or a list of images.

        Args:
            images: a path, a PIL image, an array (H, W, 3) of uint8 in RGB, a tensor (3, H, W) of uint8 or of values
                from 0 to 1 in RGB, or a list of these; see `images.as_rgb` for more forms.
            batch_size: so many images go through the model together, if they have one size after the test pipeline's
                resizing; others go alone. Results differ from those of single images by rounding only.
            bgr: arrays have the channels of OpenCV, blue first.

        Returns:
            a result, or for a list a list of results, in the order of the images.

        Raises:
            DataError: for an image that cannot be used; names it.
            NotFinite: if the model has diverged.
        """
        if not isinstance(images, list | tuple):
            return self.predict_prepared([self.prepare(self.read(images, bgr=bgr), _path(images))])[0]
        results = []
        for start in range(0, len(images), max(1, batch_size)):
            items = []
            for number, image in enumerate(images[start : start + max(1, batch_size)], start):
                array = self.read(image, f"image {number} of the list", bgr)
                items.append(self.prepare(array, _path(image)))
            results += self.predict_prepared(items)
        return results

    def read(self, image: object, where: str = "the image", bgr: bool = False) -> np.ndarray:
        """An image as the model sees it before any resizing: upright (H, W, 3) uint8, RGB.

        Args:
            image, bgr: as in a call.
            where: what messages call an image that is not a path.

        Raises:
            DataError: if it cannot be used; names it.
        """
        path = _path(image)
        if path is None:
            return as_rgb(image, where, bgr)
        if not Path(path).is_file():
            raise DataError(f"{path} {'is not a regular file' if os.path.lexists(path) else 'does not exist'}")
        try:
            return self._pipeline.read(path)
        except UnidentifiedImageError:
            raise DataError(f"{path} cannot be read (it is not an image, or its format is not supported)") from None
        except Exception as error:  # noqa: BLE001 a decoder can raise anything
            raise DataError(f"{path} cannot be read ({reason(error)})") from None

    def prepare(self, image: np.ndarray, path: str | None) -> Item:
        """An image from `read` as `predict_prepared` takes it.

        Args:
            path: its file, None if it has none.

        Raises:
            DataError: if a transform fails on the image.
        """
        return Item(self._pipeline.prepare(image, path or "an image"), image.shape[:2], path)

    def predict_prepared(self, items: Sequence[Item]) -> list[Result]:
        """Predict images from `prepare`; those of one size go through the model together.

        Raises:
            NotFinite: if the model has diverged.
            ConfigError: if a model whose configuration came with its weights fails; names its file.
        """
        groups: dict[tuple, list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault(self._pipeline.size(item.data), []).append(index)
        results: list[Result | None] = [None] * len(items)
        with torch.no_grad():
            for indices in groups.values():
                batch = self._pipeline.collate([items[index].data for index in indices])
                for index, output in zip(indices, self._run(batch, items[indices[0]].path), strict=True):
                    results[index] = self._result(output, items[index].size, items[index].path)
        return results

    def _run(self, batch: object, path: str | None) -> list:
        """The model's outputs. What fails in a model that came as data is the file's fault, and becomes one line."""
        try:
            with self._autocast():
                return self._tested.test_step(batch)
        except user_errors():
            raise
        except Exception as error:  # noqa: BLE001 a value that no constructor checks can raise anything
            if self._trained.is_program or is_out_of_memory(error):
                raise
            raise ConfigError(
                f"{self._trained.where}: its model fails on {path or 'an image'} ({one_line(error)}); a value of its "
                "configuration may be wrong"
            ) from error

    def _result(self, output: object, size: tuple[int, int], path: str | None) -> Result:
        if self.task == "classification":
            _require_finite(output, path)
            return ClassificationResult(output.float().softmax(0).cpu().numpy(), self.classes, size, path)
        if self.task == "segmentation":
            logits, labels = output.seg_logits.data, output.pred_sem_seg.data[0]
            _require_finite(logits, path)
            scores = None if self._tta else _probabilities(logits, labels).cpu().numpy()
            kind = np.uint8 if len(self.classes) <= 256 else np.uint16
            return SegmentationResult(labels.cpu().numpy().astype(kind), scores, self.classes, path)
        found = output.pred_instances
        found = found[found.bboxes.isfinite().all(1) & found.scores.isfinite()]
        return DetectionResult(
            boxes=found.bboxes.float().cpu().numpy(),
            scores=found.scores.float().cpu().numpy(),
            labels=found.labels.long().cpu().numpy(),
            masks=found.masks.bool().cpu().numpy() if "masks" in found else None,
            classes=self.classes,
            size=size,
            path=path,
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an image was too large, on a CPU or a GPU."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def _require_finite(scores: Tensor, path: str | None) -> None:
    if not bool(scores.isfinite().all()):
        raise NotFinite(
            f"{path or 'an image'}: the model's scores are not finite, so they mean nothing; the model has diverged: "
            "use an earlier checkpoint"
        )


def _path(image: object) -> str | None:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used ({reason(error)}); give 'cpu', or 'cuda' on a GPU") from None
    return device


def _task(trained: Trained, model: torch.nn.Module) -> str:
    if isinstance(model, Classifier) and model.num_classes:
        return "classification"
    if trained.scope not in TASKS or not hasattr(model, "test_step"):
        raise ConfigError(
            f"{trained.where} is a backbone or pretraining model ({type(model).__name__}), which names nothing in an "
            "image; give a detector, segmentor or classifier"
        )
    return TASKS[trained.scope]


def _slide(model: torch.nn.Module, task: str, window: int) -> None:
    """Let a segmentor predict in windows."""
    if task != "segmentation":
        raise ConfigError(f"--window {window}: only a segmentor predicts in windows, and this is a model for {task}")
    if window < 1:
        raise ConfigError(f"--window {window}: give a number of pixels")
    stride = max(1, window * 2 // 3)
    model.test_cfg.update(mode="slide", crop_size=(window, window), stride=(stride, stride))


def _probabilities(scores: Tensor, labels: Tensor) -> Tensor:
    """The probability of each pixel's label, (H, W).

    Args:
        scores: (C, H, W) logits; of a segmentor with one output, (1, H, W) probabilities of class 1.
        labels: (H, W).
    """
    if len(scores) == 1:
        return (1 - scores[0] - labels).abs()
    return (scores.amax(0) - scores.logsumexp(0)).exp().float()
