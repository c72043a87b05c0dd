"""mmengine's Runner with strict and safe checkpoints, on GPUs or on CPU processes."""

import os

from mmengine.model import BaseTTAModel, MMDistributedDataParallel, is_model_wrapper
from mmengine.registry import MODEL_WRAPPERS, RUNNERS
from mmengine.runner import Runner
from torch import nn

from arm_backbone.checkpoint import load_model, model_state, read_checkpoint

from .hooks import PlainCheckpointHook, SeedIterationHook, ThroughputHook, restore_log_buffers


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """For modules on a CPU, where DDP refuses the device numbers that mmengine passes."""

    def __init__(self, module: nn.Module, device_ids: list | None = None, **kwargs) -> None:
        super().__init__(module=module, device_ids=None, **kwargs)


@RUNNERS.register_module()
class ARMRunner(Runner):
    """Differs from mmengine's in four ways.

    A checkpoint must fit the model tensor by tensor; it is read without executing code from it; it is written beside
    its
    place and renamed, so that a run that dies leaves no half file; and a resumed run draws the random numbers that the
    uninterrupted one would have drawn.
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

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """As mmengine's, but never a half-written file under the final name."""
        partial = f"{filename}.part"
        super().save_checkpoint(out_dir, partial, *args, **kwargs)
        if self._rank == 0:
            os.replace(os.path.join(out_dir, partial), os.path.join(out_dir, filename))
