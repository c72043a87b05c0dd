"""Stops training before a non-finite loss reaches the weights."""

import math
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from arm_backbone.checkpoint.files import replacing

from ..errors import NonFiniteLoss


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops a run before the backward pass of a non-finite loss, so that the weights stay those of the last step.

    Writes the batch to `non_finite_batch_RANK.pth` in the work dir; the error names the batch's files if the data set
    passes them on (as strings in `data_samples`).

    Patches `update_params` of the run's optimizer wrapper: mmengine calls no hook between loss and backward.

    Raises:
        NonFiniteLoss: in the process whose loss is not finite.
    """

    def before_train(self, runner) -> None:
        update_params = runner.optim_wrapper.update_params

        def checked_update(loss: torch.Tensor, *args, **kwargs) -> None:
            value = float(loss.detach())
            if not math.isfinite(value):
                self._stop(runner, value)
            update_params(loss, *args, **kwargs)

        runner.optim_wrapper.update_params = checked_update

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._batch = data_batch

    def _stop(self, runner, value: float) -> None:
        path = Path(runner.work_dir) / f"non_finite_batch_{runner.rank}.pth"
        samples = self._batch.get("data_samples")
        files = [s for s in samples if isinstance(s, str)] if isinstance(samples, list) else []
        with replacing(path) as partial:
            torch.save(dict(iteration=runner.iter + 1, inputs=self._batch["inputs"], files=files), partial)
        named = f" of {', '.join(files[:4])}{', ...' if len(files) > 4 else ''}" if files else ""
        raise NonFiniteLoss(
            f"iteration {runner.iter + 1}: the loss is {value} and no step was taken; the batch{named} is saved in "
            f"{path}: inspect it, lower the learning rate, then continue with --resume"
        )
