"""Hooks of training: throughput in the log, random numbers that resume, checkpoints without foreign objects."""

import random
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_reduce, broadcast, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook, LoggerHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS

from arm_pretrain.data import ImageFiles

from .sampler import mix_seed


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


def plain(value):
    """Numbers, strings, tensors and containers only: numpy becomes Python, log buffers become dicts of lists."""
    if isinstance(value, HistoryBuffer):
        logs, counts = value.data
        return dict(log_history=logs.tolist(), count_history=counts.tolist(), max_length=value.max_length)
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        kind = list if isinstance(value, set) else type(value)
        return kind(plain(item) for item in value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value


TENSORS = ("state_dict", "ema_state_dict", "accumulated_gradients")  # already plain


class RemoveLater:
    """A file backend that only notes down what to remove; everything else is the backend's."""

    def __init__(self, backend) -> None:
        self.backend = backend
        self.outdated: list[str] = []

    def remove(self, path: str) -> None:
        self.outdated.append(path)

    def __getattr__(self, name: str):
        return getattr(self.backend, name)


class SkippedFilesHook(Hook):
    """At the end of training: how many files could not be read and were left out, and which, in skipped_files.txt."""

    def after_train(self, runner) -> None:
        files = getattr(runner.train_dataloader.dataset, "files", None)
        if not isinstance(files, ImageFiles):
            return
        skipped = files.skipped.to(torch.uint8)
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


class PlainCheckpointHook(Hook):
    """Checkpoints that load with `weights_only=True`; `restore_log_buffers` undoes it on resuming.

    And it makes mmengine's CheckpointHook remove an outdated checkpoint after the new one is written, not before.
    """

    priority = "VERY_LOW"  # after CheckpointHook's own

    def before_train(self, runner) -> None:
        self._backends = []
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                hook.file_backend = RemoveLater(hook.file_backend)
                self._backends.append(hook.file_backend)

    def remove_outdated(self, written: Path) -> None:
        """Called when the checkpoint `written` is complete."""
        for later in getattr(self, "_backends", []):
            for path in later.outdated:
                if Path(path) != written:
                    later.backend.remove(path)
            later.outdated.clear()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint.update(runner.gathered)
        for key in [key for key in checkpoint if key not in TENSORS]:
            checkpoint[key] = plain(checkpoint[key])


def restore_log_buffers(message_hub: dict) -> None:
    """Turn the log buffers of a saved message hub back into mmengine's, in place."""
    scalars = message_hub["log_scalars"]
    for name, value in scalars.items():
        if isinstance(value, dict):
            scalars[name] = HistoryBuffer(value["log_history"], value["count_history"], value["max_length"])
