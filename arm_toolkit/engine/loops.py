"""An epoch-based training loop that can resume in the middle of an epoch."""

from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop

from ..errors import ConfigError


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop that resumes within an epoch, at the next batch.

    `ARMRunner` builds it wherever a configuration has mmengine's.

    Needs `SeededSampler`, whose order follows from seed and epoch, or a batch sampler (which the runner puts into
    `SkippableBatches`) over it. A `CheckpointHook` with by_epoch=False writes checkpoints within an epoch.

    Raises:
        ConfigError: on resuming within an epoch, if the sampler cannot skip what is done.
    """

    def run_epoch(self) -> None:
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        # nonzero only right after resuming; all of them if a checkpoint was written after an epoch's last iteration,
        # before the epoch was counted: then only what follows an epoch is left to do
        done = self._iter - self._epoch * len(self.dataloader)
        if 0 < done < len(self.dataloader):
            self._skip(done)
        if done < len(self.dataloader):
            for index, batch in enumerate(self.dataloader, start=done):
                self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _skip(self, batches: int) -> None:
        loader = self.dataloader
        if hasattr(loader.batch_sampler, "skip"):
            loader.batch_sampler.skip(batches)
        elif hasattr(loader.sampler, "skip"):
            loader.sampler.skip(batches * loader.batch_size)
        else:
            raise ConfigError(
                f"train_dataloader.sampler.type={type(loader.sampler).__name__!r} cannot resume within an epoch; set "
                "SeededSampler, or resume from a checkpoint between two epochs"
            )
