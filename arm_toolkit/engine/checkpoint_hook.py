"""Checkpoint hook: files that load with `weights_only=True`, and outdated files removed last."""

from pathlib import Path

import numpy as np
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer


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
