"""An epoch-based training loop that can resume in the middle of an epoch."""

from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop
from torch import nn


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop that resumes within an epoch, at the next batch.

    Needs `SeededSampler`, whose order follows from seed and epoch. A `CheckpointHook` with by_epoch=False writes
    checkpoints within an epoch.
    """

    def run(self) -> nn.Module:
        if self._iter == (self._epoch + 1) * len(self.dataloader):
            self._epoch += 1  # saved after an epoch's last iteration, before the epoch was counted
        return super().run()

    def run_epoch(self) -> None:
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter % len(self.dataloader)  # nonzero only right after resuming
        if done:
            self.dataloader.sampler.skip(done * self.dataloader.batch_size)
        for index, batch in enumerate(self.dataloader, start=done):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
