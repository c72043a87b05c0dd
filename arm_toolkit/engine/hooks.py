"""Hooks of training: throughput in the log, random numbers that resume, checkpoints without foreign objects."""

import random
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_reduce, broadcast, get_rank, get_world_size
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS

from arm_images.read import ImageFiles

from ..datasets.samplers import mix_seed


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Logs images per second over all processes, data loading included.

    And beside it what the loader alone could deliver, from the time that its workers spend on an image, where the data
    set counts it (`ImageCrops.spent`).
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
    """Makes the model's random numbers (drop path, sampling of proposals) a function of seed, iteration and process.

    So that a resumed run draws what the uninterrupted one would have.
    """

    priority = "VERY_HIGH"

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        seed = mix_seed(runner.seed, runner.iter, get_rank())
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


@HOOKS.register_module()
class SameBuffersHook(Hook):
    """Before validation every process takes the buffers of the first one, which are those of the checkpoint.

    BatchNorm's running statistics differ between processes (SyncBN's do not).
    """

    def before_val_epoch(self, runner) -> None:
        for buffer in runner.model.buffers():
            broadcast(buffer)


class SkippedFilesHook(Hook):
    """At the end of training: how many files could not be read and were left out, and which, in skipped_files.txt."""

    def after_train(self, runner) -> None:
        files = getattr(runner.train_dataloader.dataset, "files", None)
        if not isinstance(files, ImageFiles):
            return
        skipped = torch.from_numpy(files.skipped).to(torch.uint8)
        all_reduce(skipped, "max")
        names = [str(files[i]) for i in skipped.nonzero().flatten().tolist()]
        if names and get_rank() == 0:
            path = Path(runner.work_dir) / "skipped_files.txt"
            path.write_text("".join(f"{name}\n" for name in names))
            runner.logger.warning(f"{len(names)} of {len(files)} files could not be read and were left out: see {path}")


@HOOKS.register_module()
class OneFileLoggerHook(LoggerHook):
    """mmengine's, where every process writes the metrics of a test to the same file; here the first one does."""

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        if get_rank() == 0:
            super().after_test_epoch(runner, metrics)
