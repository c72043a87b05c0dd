"""Looks at data sets and batches before the model does: objects, labelled pixels, sizes and channels."""

import logging
import math
from collections.abc import Sequence
from numbers import Real

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from arm_images.errors import DataError

from ..datasets.truth import require_truth
from ..errors import ConfigError
from .finite_hook import batch_files

PATIENCE = 20  # training batches without an object or a labelled pixel


@HOOKS.register_module()
class BatchesHook(Hook):
    """Stops a run that has nothing to learn from or to evaluate on, and at a batch that the model cannot take.

    * Before the first batch: training, validation and test set must have an object or a labelled pixel.
    * The first training batches, until one has an object or a labelled pixel: after `PATIENCE` batches without one the
      run stops if their label maps have none either; otherwise a warning says so. Nothing is looked at on a GPU.
    * The images of a batch must have equal channels, and for a segmentor one size, since it pads no test images.
    * An evaluation without any score (NaN, or COCO's -1) is an error.

    Raises:
        DataError, ConfigError: naming the files and the key to change.
    """

    def before_train(self, runner) -> None:
        self._unlabelled: set[str] = set()
        self._batches = 0
        self._patience = min(PATIENCE, runner.max_iters - runner.iter)
        _require_truth(runner, runner.train_loop, "train_dataloader")
        if runner.val_loop is not None:
            _require_truth(runner, runner.val_loop, "val_dataloader")

    def before_test(self, runner) -> None:
        _require_truth(runner, runner.test_loop, "test_dataloader")

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        _take(runner, data_batch, "train_dataloader")
        if self._batches is not None:
            self._look_for_truth(runner, data_batch)

    def before_val_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        _take(runner, data_batch, "val_dataloader")

    def before_test_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        _take(runner, data_batch, "test_dataloader")

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        runner.working_on = ()

    after_val_iter = after_test_iter = after_train_iter

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        scores = {key: value for key, value in (metrics or {}).items() if isinstance(value, Real)}
        if scores and all(math.isnan(value) or value == -1 for value in scores.values()):
            key, value = next(iter(scores.items()))
            raise DataError(
                f"{key} is {value}: the annotations have nothing that the evaluator counts; check metainfo.classes, "
                "reduce_zero_label, ignore_index and the annotations"
            )

    after_test_epoch = after_val_epoch

    def _look_for_truth(self, runner, batch: dict) -> None:
        """Look at one of the first training batches; look no more once there is something to learn."""
        samples, ignored = batch.get("data_samples"), _ignore_index(runner)
        samples = [s for s in samples if isinstance(s, BaseDataElement)] if isinstance(samples, list) else []
        if not samples or any(_teaches(sample, ignored) for sample in samples):
            self._batches = None
            return
        self._batches += 1
        self._unlabelled.update(str(sample.get("seg_map_path")) for sample in samples if "gt_sem_seg" in sample)
        if self._batches < self._patience:
            return
        if self._unlabelled:
            require_truth(runner.train_dataloader.dataset, "train_dataloader", ignored, self._unlabelled)
        print_log(
            f"train_dataloader: no {'labelled pixel' if self._unlabelled else 'object'} in the first {self._batches} "
            "batches, although the data set has some; look at what the transforms leave (crop_size), and at filter_cfg",
            logger="current",
            level=logging.WARNING,
        )
        self._batches = None


def _teaches(sample: BaseDataElement, ignored: int) -> bool:
    """Whether a training sample has a labelled pixel or an object; one of another task always teaches."""
    if "gt_sem_seg" in sample:
        return bool((sample.gt_sem_seg.data != ignored).any())
    return "gt_instances" not in sample or len(sample.gt_instances) > 0


def _require_truth(runner, loop, where: str) -> None:
    metrics = getattr(getattr(loop, "evaluator", None), "metrics", ())
    if not any(getattr(metric, "format_only", False) for metric in metrics):  # a test set whose labels are secret
        require_truth(loop.dataloader.dataset, where, _ignore_index(runner))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of several processes and of test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _ignore_index(runner) -> int:
    head = getattr(unwrapped(runner.model), "decode_head", None)
    return getattr(head[-1] if isinstance(head, nn.ModuleList) else head, "ignore_index", 255)


def _take(runner, batch: dict, where: str) -> None:
    """Note the batch's files for the message of an error in the model, and check its images' shapes."""
    runner.working_on = batch_files(batch) if isinstance(batch, dict) else ()
    inputs = batch.get("inputs") if isinstance(batch, dict) else None
    if not isinstance(inputs, list | tuple) or not inputs:
        return
    samples = batch.get("data_samples")
    # test-time augmentation: one list of images for each variant
    groups = [(inputs, samples)] if isinstance(inputs[0], Tensor) else zip(inputs, samples, strict=False)
    preprocessor = getattr(unwrapped(runner.model), "data_preprocessor", None)
    for images, of_images in groups:
        names = batch_files(dict(data_samples=of_images))
        if len(names) != len(images):
            names = [f"image {number} of the batch" for number in range(1, len(images) + 1)]
        shapes = [tuple(image.shape) for image in images]
        _check_channels(preprocessor, shapes, names, where)
        if hasattr(preprocessor, "seg_pad_val"):  # mmseg's
            _check_sizes(getattr(preprocessor, "size", None), shapes, names, where)


def _check_channels(preprocessor, shapes: Sequence[tuple], names: Sequence[str], where: str) -> None:
    mean = getattr(preprocessor, "mean", None)
    expected = mean.numel() if isinstance(mean, Tensor) else shapes[0][0]
    for shape, name in zip(shapes, names, strict=True):
        if shape[0] != expected and not (expected == 3 and all(shape[0] == 1 for shape in shapes)):
            raise ConfigError(
                f"{where}: {name} has {shape[0]} channels, but the model's data_preprocessor normalizes {expected}; "
                "set color_type='color' in LoadImageFromFile, or convert the image"
            )


def _check_sizes(size: tuple[int, int] | None, shapes: Sequence[tuple], names: Sequence[str], where: str) -> None:
    """Check that a segmentor's images have one size, in training after padding to `size`."""
    if where == "train_dataloader":
        if size is None:
            return  # padded to the largest
        remedy = "crop them to model.data_preprocessor.size with RandomCrop, or resize all to one size"
        padded = [(max(shape[1], size[0]), max(shape[2], size[1])) for shape in shapes]
    else:
        remedy = f"set {where}.batch_size=1, or resize all to one size"
        padded = [shape[1:] for shape in shapes]
    for index, other in enumerate(padded):
        if other != padded[0]:
            (_, height, width), (_, h, w) = shapes[0], shapes[index]
            raise ConfigError(
                f"{where}.batch_size={len(shapes)}: {names[0]} has {width}x{height} pixels after the pipeline and "
                f"{names[index]} {w}x{h}, and one batch holds one size; {remedy}"
            )
