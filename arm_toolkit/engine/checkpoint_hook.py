"""Checkpoints that load with `weights_only=True`; an outdated file is removed only after its successor is complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS

TENSORS = ("state_dict", "ema_state_dict", "accumulated_gradients")  # already plain


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook with safe contents and a safe order of writing. `ARMRunner` builds it in its place.

    * A file holds only numbers, strings, tensors and containers, so it loads with `weights_only=True`. On resuming,
      `restore_log_buffers` converts the log buffers back. This covers every checkpoint that the runner saves, not only
      those of this hook.
    * mmengine removes the outdated checkpoint, then writes the new one: with `max_keep_ckpts=1` a full disk or a kill
      in between leaves none. Here the removal comes last. `ARMRunner.save_checkpoint` makes the writing itself atomic.

    The arguments are mmengine's.
    """

    def before_train(self, runner) -> None:
        super().before_train(runner)
        self.file_backend = _DeferredRemoval(self.file_backend, Path(self.out_dir))

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        with self._note_errors(runner):
            super().after_train_iter(runner, *args, **kwargs)
        self._remove_outdated()

    def after_train_epoch(self, runner) -> None:
        with self._note_errors(runner):
            super().after_train_epoch(runner)
        self._remove_outdated()

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        super().after_val_epoch(runner, metrics)
        self._remove_outdated()

    def after_train(self, runner) -> None:
        """Like mmengine's; also says where the best checkpoint is."""
        super().after_train(runner)
        best = getattr(self, "best_ckpt_path", None)
        if best is not None:
            score = runner.message_hub.get_info("best_score")
            runner.logger.info(f"Best checkpoint ({self.key_indicators[0]} {score:.4g}): {best}")

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add what all processes gathered, and convert the rest to plain values. Runs in the first process only."""
        checkpoint.update(runner.gathered)
        for key in checkpoint.keys() - set(TENSORS):
            checkpoint[key] = plain(checkpoint[key])

    @contextmanager
    def _note_errors(self, runner) -> Iterator[None]:
        """Go on if the file `last_checkpoint` cannot be written: the checkpoint is complete, and --resume finds it."""
        try:
            yield
        except OSError as error:  # one of the checkpoint itself is a CheckpointError
            path = Path(runner.work_dir, "last_checkpoint")
            runner.logger.warning(f"{path} cannot be written ({error.strerror}); the checkpoint itself is complete")

    def _remove_outdated(self) -> None:
        best = getattr(self, "best_ckpt_path_dict", {}).values()  # mmengine sets one of the two, or neither
        self.file_backend.remove_outdated({self.last_ckpt, getattr(self, "best_ckpt_path", None), *best})


class _DeferredRemoval:
    """Wraps a file backend: `remove` only notes the path, `remove_outdated` removes.

    Only files in `folder` are removed: after resuming, mmengine reads the name of the best checkpoint from the file.
    """

    def __init__(self, backend, folder: Path) -> None:
        self._backend, self._folder = backend, folder.resolve()
        self._outdated: list[str] = []

    def remove(self, path: str) -> None:
        self._outdated.append(path)

    def remove_outdated(self, current: set[str | None]) -> None:
        """Remove the noted files, except the current ones: a resumed run can write a file of the same name again."""
        for path in self._outdated:
            if path not in current and Path(path).resolve().parent == self._folder:
                self._backend.remove(path)
        self._outdated.clear()

    def __getattr__(self, name: str):
        return getattr(self._backend, name)


def plain(value):
    """Convert numpy values to Python values, and log buffers to dicts of lists, inside nested containers."""
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


def restore_log_buffers(message_hub: dict) -> None:
    """Convert the log buffers of a loaded message hub back to mmengine's HistoryBuffer, in place."""
    scalars = message_hub["log_scalars"]
    for name, value in scalars.items():
        if isinstance(value, dict):
            scalars[name] = HistoryBuffer(value["log_history"], value["count_history"], value["max_length"])
