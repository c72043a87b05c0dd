"""The moving average of the weights that finetuning evaluates (recipes of ARM section 4.2: decay 0.99992)."""

from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class WeightEMAHook(EMAHook):
    """`ema = decay * ema + (1 - decay) * weights` after every optimizer step, from a copy of the first weights on.

    mmengine's own hook takes the weights of the first step as they are, and counts every iteration of an accumulated
    step. Evaluation uses the average, and a checkpoint's `state_dict` holds it; `ema_state_dict` holds the weights.
    """

    def __init__(self, decay: float) -> None:
        super().__init__("ExponentialMovingAverage", momentum=1 - decay, update_buffers=True)

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if self.ema_model.steps == 0:  # not resumed; by now the checkpoint to start from is loaded
            self.ema_model.module.load_state_dict(self.src_model.state_dict())
            self.ema_model.steps.fill_(1)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
