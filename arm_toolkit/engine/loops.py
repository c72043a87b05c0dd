"""Training by epochs that resumes in the middle of one."""

from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop
from torch import nn


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's loop by epochs; after a checkpoint within an epoch it goes on with the next batch of that epoch.

    Needs `SeededSampler`, whose order follows from seed and epoch. Checkpoints within an epoch come from a
    `CheckpointHook` with by_epoch=False.
    """

    def run(self) -> nn.Module:
        if self._iter == (self._epoch + 1) * len(self.dataloader):
            self._epoch += 1  # resumed after the last iteration of an epoch, which was not counted yet
        return super().run()

    def run_epoch(self) -> None:
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter % len(self.dataloader)  # not 0 only right after resuming
        if done:
            self.dataloader.sampler.skip(done * self.dataloader.batch_size)
        for index, batch in enumerate(self.dataloader, start=done):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
