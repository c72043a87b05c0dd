"""Exponential moving average of the weights, which finetuning evaluates (ARM section 4.2; decay 0.99992)."""

from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class WeightEMAHook(EMAHook):
    """`ema = decay * ema + (1 - decay) * weights` after every optimizer step, starting from the initial weights.

    mmengine's hook instead starts from the weights after the first step, and updates at every iteration of an
    accumulated step. Evaluation uses the average. In a checkpoint `state_dict` holds the average and `ema_state_dict`
    the weights.
    """

    def __init__(self, decay: float) -> None:
        super().__init__("ExponentialMovingAverage", momentum=1 - decay, update_buffers=True)

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if self.ema_model.steps == 0:  # not resumed; an initial checkpoint is loaded by now
            self.ema_model.module.load_state_dict(self.src_model.state_dict())
            self.ema_model.steps.fill_(1)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
