"""mmengine's Runner with strict and safe checkpoints, on GPUs or on CPU processes."""

import logging
import os
from pathlib import Path

from mmengine.device import get_device
from mmengine.dist import all_reduce
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel, MMDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS, RUNNERS
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_model
from arm_images.errors import DataError

from ..datasets.samplers import SeededSampler
from ..errors import ConfigError
from .checkpoint_hook import PlainCheckpointHook, restore_log_buffers
from .checks import config_errors
from .fsdp import is_sharded, part_like, shard, shard_optimizer_state, whole
from .hooks import SameBuffersHook, SeedIterationHook, SkippedFilesHook, ThroughputHook

EMPTY = "the data set is empty; check ann_file, data_prefix, metainfo classes and filter_cfg"


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

    started = False  # training or testing, after everything is built and loaded
    gathered: dict  # while a checkpoint is written: see _gather

    def call_hook(self, fn_name: str, **kwargs) -> None:
        super().call_hook(fn_name, **kwargs)
        self.started = self.started or fn_name in ("before_train", "before_test")

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """As mmengine's; warnings of `arm_images` go to the same console and file, from data loader workers too."""
        logger = super().build_logger(*args, **kwargs)
        logging.getLogger("arm_images").handlers = list(logger.handlers)
        return logger

    def build_dataloader(self, dataloader: dict, *args, **kwargs) -> DataLoader:
        """As mmengine's; raises DataError if there is no image, or not one batch."""
        parts = ("train_dataloader", "val_dataloader", "test_dataloader")
        name = next((part for part in parts if getattr(self, f"_{part}") is dataloader), "data loader")
        file = dataloader["dataset"].get("ann_file")
        try:
            with config_errors(self.cfg, f"{name} ({file})" if file else name):
                loader = super().build_dataloader(dataloader, *args, **kwargs)
        except ConfigError as error:
            if "need at least one array to concatenate" in str(error):  # mmengine's data set without an entry
                raise DataError(f"{name}: {EMPTY}") from error
            raise
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        if len(loader.dataset) == 0:
            raise DataError(f"{name}: {EMPTY}")
        if len(loader) == 0:
            raise DataError(
                f"{name}: the {len(loader.dataset)} images do not fill a batch on each of {self.world_size} processes; "
                "give more images or a smaller batch_size"
            )
        return loader

    def build_train_loop(self, loop: dict | BaseLoop) -> BaseLoop:
        with config_errors(self.cfg, "train_cfg"):
            return super().build_train_loop(loop)

    def build_val_loop(self, loop: dict | BaseLoop) -> BaseLoop:
        with config_errors(self.cfg, "val_cfg"):
            return super().build_val_loop(loop)

    def build_test_loop(self, loop: dict | BaseLoop) -> BaseLoop:
        with config_errors(self.cfg, "test_cfg"):
            return super().build_test_loop(loop)

    def build_evaluator(self, evaluator: dict | list | Evaluator) -> Evaluator:
        with config_errors(self.cfg, "evaluator"):
            return super().build_evaluator(evaluator)

    def build_optim_wrapper(self, optim_wrapper: dict | OptimWrapper) -> OptimWrapper:
        with config_errors(self.cfg, "optim_wrapper"):
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler):
        with config_errors(self.cfg, "param_scheduler"):
            return super().build_param_scheduler(scheduler)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        logger = (hooks or {}).get("logger")
        if isinstance(logger, dict) and logger.get("type") == "LoggerHook":
            logger["type"] = "OneFileLoggerHook"
        super().register_default_hooks(hooks)
        for hook in (
            PlainCheckpointHook(),
            SameBuffersHook(),
            SeedIterationHook(),
            SkippedFilesHook(),
            ThroughputHook(),
        ):
            self.register_hook(hook)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """As mmengine's, and `fully_shard` (see `arm_toolkit.engine.fsdp`)."""
        if (model_wrapper_cfg or {}).get("type") != "fully_shard":
            return super().wrap_model(model_wrapper_cfg, model)
        if any(isinstance(hook, dict) and "EMA" in hook["type"] for hook in self.cfg.get("custom_hooks") or ()):
            raise ConfigError(
                "custom_hooks has an EMA hook, model_wrapper_cfg type fully_shard: a moving average copies the model, "
                "which a sharded one refuses; leave one of them out"
            )
        return shard(model.to(get_device())) if self.distributed else model.to(get_device())

    def _init_model_weights(self) -> None:
        if not is_sharded(self.model):  # ARMPretrainer is initialised when it is made
            super()._init_model_weights()

    def load_checkpoint(self, filename: str, map_location="cpu", strict: bool = True, revise_keys: list = ()) -> dict:
        """Load a checkpoint of exactly this model, a CheckpointError otherwise. The other arguments are mmengine's."""
        checkpoint = read_checkpoint(filename)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        state, weights = model_state(checkpoint), model.state_dict()
        if is_sharded(model):
            state = {name: part_like(x, weights[name]) if name in weights else x for name, x in state.items()}
        load_model(model, state, filename)
        self._has_loaded = True
        self.logger.info(f"All {len(weights)} tensors of the model loaded from {filename}")
        self._interrupted_gradients = checkpoint.get("accumulated_gradients", {})
        if "message_hub" in checkpoint:
            restore_log_buffers(checkpoint["message_hub"])
        return checkpoint

    def resume(self, filename: str, *args, **kwargs) -> None:
        """As mmengine's, and the images come in the order of the resumed run's seed, also if this one has another."""
        super().resume(filename, *args, **kwargs)
        if is_sharded(self.model):
            shard_optimizer_state(self.optim_wrapper.optimizer)
        for name, parameter in self._trained():
            if name in self._interrupted_gradients:
                parameter.grad = part_like(self._interrupted_gradients[name], parameter)
        loader = self.train_dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if isinstance(sampler, SeededSampler):
                sampler.seed = self.seed

    def save_checkpoint(self, out_dir: str, filename: str, *args, save_optimizer: bool = True, **kwargs) -> None:
        """As mmengine's, but never a half-written file under the final name, and outdated ones are removed last.

        Raises:
            CheckpointError: if it cannot be written (a full disk); what was there before is still there.
        """
        path, partial = Path(out_dir, filename), Path(out_dir, f"{filename}.part")
        self.gathered = self._gather(save_optimizer)
        try:
            super().save_checkpoint(out_dir, partial.name, *args, save_optimizer=save_optimizer, **kwargs)
            if self._rank == 0:
                os.replace(partial, path)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be written ({error.strerror or error}); make room there or give another --work-dir, "
                "then go on with --resume"
            ) from error
        finally:
            self.gathered = {}
            if self._rank == 0:
                partial.unlink(missing_ok=True)
        for hook in self.hooks:
            if isinstance(hook, PlainCheckpointHook):
                hook.remove_outdated(path)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        model = self.model.module if is_model_wrapper(self.model) else self.model
        return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]

    def _gather(self, optimizer: bool) -> dict:
        """The parts of a checkpoint that all processes have to make together.

        A sum of gradients that is not complete: its mean over the processes, with which each of them goes on. With
        sharding: weights and optimizer state.
        """
        gathered, sharded = {}, is_sharded(self.model)
        if optimizer and not self.optim_wrapper.should_update():
            gradients = {name: p.grad.clone() for name, p in self._trained() if p.grad is not None}
            if not sharded:  # otherwise they are means already
                for gradient in gradients.values():
                    all_reduce(gradient, "mean")
            gathered["accumulated_gradients"] = whole(gradients)
        if sharded:
            gathered["state_dict"] = whole(self.model.state_dict())
            if optimizer:
                gathered["optimizer"] = whole(self.optim_wrapper.state_dict())
        return gathered
