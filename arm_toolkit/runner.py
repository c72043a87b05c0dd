"""mmengine's Runner with strict and safe checkpoints, on GPUs or on CPU processes."""

import os
from pathlib import Path

from mmengine.model import BaseTTAModel, MMDistributedDataParallel, is_model_wrapper
from mmengine.registry import MODEL_WRAPPERS, RUNNERS
from mmengine.runner import Runner
from torch import nn

from arm_backbone.checkpoint import CheckpointError, load_model, model_state, read_checkpoint

from .hooks import PlainCheckpointHook, SeedIterationHook, ThroughputHook, restore_log_buffers
from .sampler import SeededSampler


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """For modules on a CPU, where DDP refuses the device numbers that mmengine passes."""

    def __init__(self, module: nn.Module, device_ids: list | None = None, **kwargs) -> None:
        super().__init__(module=module, device_ids=None, **kwargs)


@RUNNERS.register_module()
class ARMRunner(Runner):
    """Differs from mmengine's in four ways.

    A checkpoint must fit the model tensor by tensor; it is read without executing code from it; it is written beside
    its place and renamed, so that a run that dies leaves no half file; and a resumed run draws the random numbers that
    the uninterrupted one would have drawn.
    """

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        super().register_default_hooks(hooks)
        for hook in (PlainCheckpointHook(), SeedIterationHook(), ThroughputHook()):
            self.register_hook(hook)

    def load_checkpoint(self, filename: str, map_location="cpu", strict: bool = True, revise_keys: list = ()) -> dict:
        """Load a checkpoint of exactly this model, a CheckpointError otherwise. The other arguments are mmengine's."""
        checkpoint = read_checkpoint(filename)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        load_model(model, model_state(checkpoint), filename)
        self._has_loaded = True
        self.logger.info(f"All {len(model.state_dict())} tensors of the model loaded from {filename}")
        if "message_hub" in checkpoint:
            restore_log_buffers(checkpoint["message_hub"])
        return checkpoint

    def resume(self, filename: str, *args, **kwargs) -> None:
        """As mmengine's, and the images come in the order of the resumed run's seed, also if this one has another."""
        super().resume(filename, *args, **kwargs)
        loader = self.train_dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if isinstance(sampler, SeededSampler):
                sampler.seed = self.seed

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """As mmengine's, but never a half-written file under the final name, and outdated ones are removed last.

        Raises:
            CheckpointError: if it cannot be written (a full disk); what was there before is still there.
        """
        path, partial = Path(out_dir, filename), Path(out_dir, f"{filename}.part")
        try:
            super().save_checkpoint(out_dir, partial.name, *args, **kwargs)
            if self._rank == 0:
                os.replace(partial, path)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be written ({error.strerror or error}); make room there or give another --work-dir, "
                "then go on with --resume"
            ) from error
        finally:
            if self._rank == 0:
                partial.unlink(missing_ok=True)
        for hook in self.hooks:
            if isinstance(hook, PlainCheckpointHook):
                hook.remove_outdated(path)
