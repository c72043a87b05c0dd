"""Stopping before a loss that is not finite reaches the weights."""

import math
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..errors import NonFiniteLoss


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops a run whose loss is not finite, before the backward: the weights stay those of the last step.

    The batch is written to `non_finite_batch_RANK.pth` in the work dir, and its files are named where the data set says
    them (as strings in `data_samples`).

    Raises:
        NonFiniteLoss: in the process that met it.
    """

    def before_train(self, runner) -> None:
        update = runner.optim_wrapper.update_params

        def checked_update(loss: torch.Tensor, *args, **kwargs) -> None:
            value = float(loss.detach())
            if not math.isfinite(value):
                self._stop(runner, value)
            update(loss, *args, **kwargs)

        runner.optim_wrapper.update_params = checked_update

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._batch = data_batch

    def _stop(self, runner, value: float) -> None:
        path = Path(runner.work_dir) / f"non_finite_batch_{runner.rank}.pth"
        samples = self._batch.get("data_samples")
        files = [s for s in samples if isinstance(s, str)] if isinstance(samples, list) else []
        torch.save(dict(iteration=runner.iter + 1, inputs=self._batch["inputs"], files=files), path)
        named = f" of {', '.join(files[:4])}{', ...' if len(files) > 4 else ''}" if files else ""
        raise NonFiniteLoss(
            f"iteration {runner.iter + 1}: the loss is {value}; the batch{named} is in {path}; no step was taken with "
            "it: look at the batch, lower the learning rate, then go on with --resume"
        )
