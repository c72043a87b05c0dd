"""Stops a training that has not improved for some evaluations, also one that was interrupted and resumed."""

import math

from mmengine.hooks import EarlyStoppingHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop


@HOOKS.register_module()
class EarlyStopHook(EarlyStoppingHook):
    """mmengine's EarlyStoppingHook with three differences.

    * Its state is part of a checkpoint: a resumed run stops where an uninterrupted one would.
    * A checkpoint is written before the evaluation of the same iteration. A run that is resumed from it evaluates
      first, so that neither this hook nor the best checkpoint misses that score.
    * Evaluations with a score of 0 do not count: a detector that starts from scratch has some before it detects
      anything.

    Args:
        monitor: the metric, as the log names it; a larger value is better.
        patience: evaluations without a better value after which training stops.
        kwargs: of mmengine's hook.
    """

    def __init__(self, monitor: str, patience: int = 5, rule: str = "greater", **kwargs) -> None:
        super().__init__(monitor, rule=rule, patience=patience, **kwargs)
        self._resumed = False

    def before_train_epoch(self, runner) -> None:
        loop = runner.train_loop
        if not self._resumed or runner.val_loop is None:
            return
        self._resumed = False
        length = len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else 1
        done, rest = divmod(loop.iter, length)
        due = done % loop.val_interval == 0 or loop.iter == loop.max_iters
        if rest == 0 and done >= max(loop.val_begin, 1) and due:
            runner.val_loop.run()

    def after_val_epoch(self, runner, metrics: dict) -> None:
        if metrics.get(self.monitor) != 0:
            super().after_val_epoch(runner, metrics)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint["early_stop"] = dict(waited=self.wait_count, best=float(self.best_score))

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        state = checkpoint.get("early_stop")
        if not runner._resume or not isinstance(state, dict):
            return
        self._resumed = True
        waited, best = state.get("waited"), state.get("best")
        if type(waited) is int and isinstance(best, float) and not math.isnan(best):
            self.wait_count, self.best_score = waited, best
