"""Stops a training that has not improved for some evaluations, also one that was interrupted and resumed."""

import math

from mmengine.hooks import EarlyStoppingHook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class EarlyStopHook(EarlyStoppingHook):
    """mmengine's EarlyStoppingHook with two differences.

    * Its state is part of a checkpoint: a resumed run stops where an uninterrupted one would.
    * Evaluations with a score of 0 do not count: a detector that starts from scratch has some before it detects
      anything.

    Args:
        monitor: the metric, as the log names it; a larger value is better.
        patience: evaluations without a better value after which training stops.
        kwargs: of mmengine's hook.
    """

    def __init__(self, monitor: str, patience: int = 5, rule: str = "greater", **kwargs) -> None:
        super().__init__(monitor, rule=rule, patience=patience, **kwargs)

    def after_val_epoch(self, runner, metrics: dict) -> None:
        if metrics.get(self.monitor) != 0:
            super().after_val_epoch(runner, metrics)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint["early_stop"] = dict(waited=self.wait_count, best=float(self.best_score))

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        state = checkpoint.get("early_stop")
        if not runner._resume or not isinstance(state, dict):
            return
        waited, best = state.get("waited"), state.get("best")
        if type(waited) is int and isinstance(best, float) and not math.isnan(best):
            self.wait_count, self.best_score = waited, best
