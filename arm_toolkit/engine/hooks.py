"""Small hooks of every run: throughput, resumable random numbers, equal buffers, finite outputs, skipped
files, metrics file."""

import random
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_reduce, broadcast, get_rank, get_world_size
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS

from arm_backbone.checkpoint.writing import WriteError, replacing
from arm_images.read import ImageFiles

from ..datasets.samplers import mix_seed
from ..errors import NotFinite


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Logs `images_per_s`: images per second over all processes, data loading included.

    If the data set records the time that its workers spend (`ImageCrops.spent`), also logs `loader_images_per_s`: the
    rate that data loading alone could reach.
    """

    def __init__(self) -> None:
        self._last: float | None = None
        self._spent = torch.zeros(2, dtype=torch.float64)

    def before_train_epoch(self, runner) -> None:
        self._last = time.perf_counter()
        spent = getattr(runner.train_dataloader.dataset, "spent", None)
        if spent is not None:
            self._spent = spent.clone()  # other hooks may have read images

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        self._last = time.perf_counter()  # iteration-based loops validate between two iterations

    def after_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None):
        now = time.perf_counter()
        images = len(data_batch["inputs"]) * get_world_size()
        runner.message_hub.update_scalar("train/images_per_s", images / (now - self._last))
        self._last = now
        spent = getattr(runner.train_dataloader.dataset, "spent", None)
        if spent is not None:
            seconds, count = (spent - self._spent).tolist()
            self._spent = spent.clone()
            if count:
                rate = max(1, runner.train_dataloader.num_workers) * get_world_size() * count / seconds
                runner.message_hub.update_scalar("train/loader_images_per_s", rate)


@HOOKS.register_module()
class SeedIterationHook(Hook):
    """Seeds the global generators before each iteration from the run's seed, the iteration and the rank.

    A resumed run then draws the same drop paths, dropout and sampled proposals as an uninterrupted one.
    """

    priority = "VERY_HIGH"

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        seed = mix_seed(runner.seed, runner.iter, get_rank())
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


@HOOKS.register_module()
class SameBuffersHook(Hook):
    """Copies the first process's buffers to all others before validation, since a checkpoint holds the first's.

    BatchNorm's running statistics differ between processes (SyncBN's do not).
    """

    def before_val_epoch(self, runner) -> None:
        for buffer in runner.model.buffers():
            broadcast(buffer)


@HOOKS.register_module()
class FiniteOutputsHook(Hook):
    """Stops an evaluation whose class scores per pixel are not finite: their argmax is class 0, often a right answer.

    Other outputs need no check: `Accuracy` counts such logits as wrong, and a box with such a score is not detected.

    Raises:
        NotFinite: naming the image.
    """

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        for sample in outputs or ():
            scores = getattr(getattr(sample, "seg_logits", None), "data", None)
            if scores is not None and not bool(scores.isfinite().all()):
                raise NotFinite(
                    f"{sample.get('img_path', f'image {batch_idx + 1}')}: the model's scores are not finite, so its "
                    "label map means nothing; the model has diverged: use an earlier checkpoint"
                )

    after_test_iter = after_val_iter


@HOOKS.register_module()
class SkippedFilesHook(Hook):
    """After training, reports how many unreadable files were skipped and lists them in `skipped_files.txt`."""

    def after_train(self, runner) -> None:
        files = getattr(runner.train_dataloader.dataset, "files", None)
        if not isinstance(files, ImageFiles):
            return
        skipped = torch.from_numpy(files.skipped).to(torch.uint8)
        all_reduce(skipped, "max")
        names = [str(files[i]) for i in skipped.nonzero().flatten().tolist()]
        if names and get_rank() == 0:
            path = Path(runner.work_dir) / "skipped_files.txt"
            with replacing(path) as partial:
                partial.write_text("".join(f"{name}\n" for name in names))
            runner.logger.warning(f"{len(names)} of {len(files)} files could not be read and were skipped: see {path}")


@HOOKS.register_module()
class OneFileLoggerHook(LoggerHook):
    """mmengine's LoggerHook, except that only the first process writes the metrics file of a test."""

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        if get_rank() == 0:
            path = Path(runner.log_dir, self.json_log_path)
            try:
                super().after_test_epoch(runner, metrics)
            except OSError as error:
                path.unlink(missing_ok=True)  # half of it
                raise WriteError(path, error.strerror, error.errno) from error
