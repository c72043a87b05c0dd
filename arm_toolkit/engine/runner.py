"""mmengine's Runner with strict and safe checkpoints and resumable random numbers, on GPUs or CPUs."""

import logging
from collections.abc import Sequence
from pathlib import Path

from mmengine.device import get_device
from mmengine.dist import all_reduce
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS, RUNNERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from mmengine.visualization import Visualizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_exact
from arm_backbone.checkpoint.writing import WriteError, replacing, uninterrupted
from arm_images.errors import DataError

from ..datasets.checked_pipeline import check_pipelines
from ..datasets.samplers import SeededSampler
from ..datasets.transforms import checked_loading
from ..errors import ConfigError, NotFinite
from ..interrupts import raise_ignored_interrupt
from .batches_hook import BatchesHook, unwrapped
from .check_classes import check_checkpoint_classes
from .checkpoint_contents import check_optimizer, check_resumable, resuming
from .checkpoint_hook import restore_log_buffers
from .checks import config_errors
from .compiled_blocks import CompiledBlocksHook
from .finite_hook import FiniteHook
from .fsdp import (
    gather_tensors,
    gather_weights,
    is_sharded,
    load_weights,
    require_shardable,
    shard,
    shard_like,
    shard_optimizer_state,
)
from .hooks import FiniteOutputsHook, SameBuffersHook, SeedIterationHook, SkippedFilesHook, ThroughputHook
from .logs import forgive_logger, forgive_visualizer
from .quiet import is_of_use
from .resume import differences, run_facts
from .schedule import Configured, follow_length

EMPTY = "the data set is empty; check ann_file, data_prefix, metainfo classes and filter_cfg"
# hooks that every run has
ALWAYS = (
    BatchesHook,
    FiniteHook,
    FiniteOutputsHook,
    SameBuffersHook,
    SeedIterationHook,
    SkippedFilesHook,
    ThroughputHook,
)
# types of hooks in a configuration, and the subclasses that the runner builds in their place
HOOK_SUBCLASSES = {"CheckpointHook": "SafeCheckpointHook", "LoggerHook": "OneFileLoggerHook"}


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """DistributedDataParallel on a CPU, which refuses the `device_ids` that mmengine passes."""

    def __init__(self, module: nn.Module, device_ids: list | None = None, **kwargs) -> None:
        super().__init__(module=module, device_ids=None, **kwargs)


@RUNNERS.register_module()
class ARMRunner(Runner):
    """mmengine's Runner with five differences.

    * A checkpoint must fit the model tensor by tensor.
    * Reading a checkpoint runs no code from it.
    * A checkpoint is written under another name and then renamed, so a run that dies leaves no incomplete file.
    * A resumed run draws the same random numbers as an uninterrupted one.
    * A loss, gradient norm or weight that is not finite stops the run before the step; weights that are not finite are
      never written.

    It adds hooks that no configuration names: `ALWAYS`. Where a configuration names `CheckpointHook` or `LoggerHook`,
    it builds `SafeCheckpointHook` (`arm_toolkit.engine.checkpoint_hook`) or `OneFileLoggerHook`, with the same
    arguments.

    Attributes:
        started: whether training or testing has begun; by then everything is built and loaded.
        worked: whether an iteration is done.
        working_on: the image files of the current batch, where its data samples name them.
        gathered: while a checkpoint is written, the parts of it that all processes compute together (`_gather`).
    """

    started = worked = False
    working_on: Sequence[str] = ()
    gathered: dict

    def call_hook(self, fn_name: str, **kwargs) -> None:
        super().call_hook(fn_name, **kwargs)
        raise_ignored_interrupt()
        self.started = self.started or fn_name in ("before_train", "before_test")
        self.worked = self.worked or fn_name in ("after_train_iter", "after_val_iter", "after_test_iter")

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Like mmengine's, without lines that ask nothing of a user; also sends what `arm_images` says to the same
        console and file, even from data workers."""
        logger = super().build_logger(*args, **kwargs)
        forgive_logger(logger)
        logger.addFilter(is_of_use)
        images = logging.getLogger("arm_images")
        images.handlers, images.level = list(logger.handlers), logging.INFO
        return logger

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """Like mmengine's; also, what it cannot write does not stop the run."""
        visualizer = super().build_visualizer(visualizer)
        forgive_visualizer(visualizer)
        return visualizer

    def dump_config(self) -> None:
        """Like mmengine's, but the file is written whole. The first process writes it."""
        if self.rank == 0:
            name = Path(self.cfg.filename).name if self.cfg.filename else f"{self.timestamp}.py"
            with replacing(Path(self.work_dir, name)) as partial:
                partial.write_text(self.cfg.pretty_text, encoding="utf-8")

    def build_dataloader(self, dataloader: dict, *args, **kwargs) -> DataLoader:
        """Like mmengine's, but images and label maps are read with `LoadImage` and `LoadLabels`, and an image that a
        transform fails on is named.

        Raises:
            DataError: if the data set is empty, or too small for one batch per process.
        """
        parts = ("train_dataloader", "val_dataloader", "test_dataloader")
        # mmengine keeps each part's configuration in a private attribute of that name until it is built
        name = next((part for part in parts if getattr(self, f"_{part}") is dataloader), "data loader")
        file, scope = dataloader["dataset"].get("ann_file"), self.cfg.get("default_scope")
        if name == "train_dataloader" and isinstance(dataloader.get("batch_sampler"), dict):
            batches = dict(type="SkippableBatches", batches=dataloader["batch_sampler"])
            dataloader = {**dataloader, "batch_sampler": batches}
        try:
            with config_errors(self.cfg, f"{name} ({file})" if file else name):
                loader = super().build_dataloader(checked_loading(dataloader, scope), *args, **kwargs)
        except ConfigError as error:
            if "need at least one array to concatenate" in str(error):  # from mmengine's data set without entries
                raise DataError(f"{name}: {EMPTY}") from error
            raise
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        check_pipelines(loader.dataset)
        if len(loader.dataset) == 0:
            raise DataError(f"{name}: {EMPTY}")
        if len(loader) == 0:
            raise DataError(
                f"{name}: {len(loader.dataset)} images do not fill one batch on each of {self.world_size} processes; "
                "add images or give a smaller batch_size"
            )
        return loader

    def build_train_loop(self, loop: dict | BaseLoop) -> BaseLoop:
        """Like mmengine's, but a loop of epochs is a `ResumableEpochLoop`."""
        if isinstance(loop, dict) and (loop.get("type") == "EpochBasedTrainLoop" or loop.get("by_epoch")):
            loop = {key: value for key, value in loop.items() if key != "by_epoch"} | dict(type="ResumableEpochLoop")
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
        """Like mmengine's, but the schedule ends with the training."""
        parts = [scheduler] if isinstance(scheduler, dict) and "type" in scheduler else scheduler
        if isinstance(parts, list) and all(isinstance(part, dict) for part in parts):
            epochs = self.max_epochs if isinstance(self.train_loop, EpochBasedTrainLoop) else None
            scheduler, lines = follow_length(parts, epochs, self.max_iters)
            for line in lines:
                self.logger.warning(line)
        with config_errors(self.cfg, "param_scheduler"):
            return super().build_param_scheduler(scheduler)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        if hooks is not None and hooks.get("checkpoint", True) is None:
            # other hooks save checkpoints too, whose contents this hook makes plain
            hooks = {**hooks, "checkpoint": dict(type="CheckpointHook", save_last=False)}
        super().register_default_hooks(hooks)
        for hook in ALWAYS:
            self.register_hook(hook())

    def register_hook(self, hook: Hook | dict, priority: str | int | None = None) -> None:
        """Like mmengine's, but builds a subclass for the types in `HOOK_SUBCLASSES`.

        A `FiniteHook` that a configuration names is the one that every run has.
        """
        if isinstance(hook, dict) and hook.get("type") in ("FiniteHook", "FiniteLossHook"):
            return
        if isinstance(hook, dict) and hook.get("type") in HOOK_SUBCLASSES:
            hook = {**hook, "type": HOOK_SUBCLASSES[hook["type"]]}
        super().register_hook(hook, priority)

    def _maybe_compile(self, target: str) -> None:
        """Called by mmengine before training, validation and testing; compiles blocks for training."""
        value = self.cfg.get("compile")
        if not value or target != "train_step":
            return
        if is_sharded(self.model):
            raise ConfigError(
                "compile with model_wrapper_cfg.type=fully_shard: sharded blocks cannot be compiled; remove one of them"
            )
        self.register_hook(CompiledBlocksHook(value))

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Like mmengine's; also accepts the type "fully_shard" (see `arm_toolkit.engine.fsdp`)."""
        if (model_wrapper_cfg or {}).get("type") != "fully_shard":
            return super().wrap_model(model_wrapper_cfg, model)
        if any(isinstance(hook, dict) and "EMA" in hook["type"] for hook in self.cfg.get("custom_hooks") or ()):
            raise ConfigError(
                "custom_hooks has an EMA hook and model_wrapper_cfg the type fully_shard: a moving average copies the "
                "model, which a sharded model does not support; remove one of them"
            )
        require_shardable(model)
        return shard(model.to(get_device())) if self.distributed else model.to(get_device())

    def _init_model_weights(self) -> None:
        # mmengine has no public method for this. A sharded model keeps the constructor's initialisation.
        if not is_sharded(self.model):
            super()._init_model_weights()

    def load_checkpoint(self, filename: str, map_location="cpu", strict: bool = True, revise_keys: list = ()) -> dict:
        """Load a checkpoint that fits the model tensor by tensor. mmengine's other arguments have no effect.

        Raises:
            CheckpointError: if the file cannot be read or does not fit the model.
        """
        checkpoint = read_checkpoint(filename)
        if self._resume:
            epochs = self.max_epochs if isinstance(self.train_loop, EpochBasedTrainLoop) else None
            check_resumable(checkpoint, filename, self.max_iters, epochs)
            self._differences = differences(checkpoint, self, filename)
            self._saved_schedule = checkpoint.get("param_schedulers")
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = unwrapped(self.model)
        state = model_state(checkpoint, where=filename)
        (load_weights if is_sharded(model) else load_exact)(model, state, filename)
        if self._resume:
            check_optimizer(checkpoint, filename, self.optim_wrapper)
        testing = isinstance(self._test_loop, BaseLoop)  # built
        if testing or self._resume:
            loader = "test_dataloader" if testing else "train_dataloader"
            dataset = (self.test_dataloader if testing else self.train_dataloader).dataset
            check_checkpoint_classes(filename, checkpoint.get("meta") or {}, dataset, loader)
        self._has_loaded = True  # mmengine's private flag: it loads `load_from` once
        self.logger.info(f"All {len(state)} tensors of the model loaded from {filename}")
        self._interrupted_gradients = checkpoint.get("accumulated_gradients", {})
        if "message_hub" in checkpoint:
            restore_log_buffers(checkpoint["message_hub"])
        return checkpoint

    def resume(self, filename: str, **kwargs) -> None:
        """Like mmengine's; also restores partially accumulated gradients and the seed that orders the images.

        Rates and schedules are those of the configuration. One line each says what differs from the run that is
        continued, and whether it is finished.

        Raises:
            CheckpointError: if the file lacks what resuming needs, holds something else in its place, or comes from a
                run that this one cannot continue.
        """
        self._resume = True
        configured = Configured(self.optim_wrapper, self.param_schedulers)
        with resuming(filename):
            super().resume(filename, resume_param_scheduler=False, **kwargs)  # `Configured` continues the schedules
            lines = self._differences + configured.restore(self, self._saved_schedule)
        for line in lines:
            self.logger.warning(f"{filename}: {line}")
        if self.iter >= self.max_iters:
            self.logger.info(
                f"{filename}: this run is finished ({self.iter} of {self.max_iters} iterations), nothing is left to "
                "do; to train longer set train_cfg"
            )
        if is_sharded(self.model):
            shard_optimizer_state(self.optim_wrapper.optimizer)
        for name, parameter in self._trained():
            if name in self._interrupted_gradients:
                parameter.grad = shard_like(self._interrupted_gradients[name], parameter)
        loader = self.train_dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if isinstance(sampler, SeededSampler):
                sampler.seed = self.seed

    def save_checkpoint(self, out_dir: str, filename: str, *args, save_optimizer: bool = True, **kwargs) -> None:
        """Like mmengine's, but atomic: writes under another name, then renames. Every process must call this.

        Ctrl-C waits until the file is complete.

        Raises:
            CheckpointError: if it cannot be written (a full disk); earlier checkpoints are kept.
            NotFinite: if the weights are not finite.
        """
        path = Path(out_dir, filename)
        self.gathered = self._gather(save_optimizer)
        self._check_finite(path)
        try:
            if self.rank == 0:
                with uninterrupted(), replacing(path) as partial:
                    super().save_checkpoint(out_dir, partial.name, *args, save_optimizer=save_optimizer, **kwargs)
        except WriteError as error:
            raise CheckpointError(
                f"{path} cannot be written ({error.reason}); free space there or give another --work-dir, "
                "then continue with --resume"
            ) from error
        finally:
            self.gathered = {}

    def _check_finite(self, path: Path) -> None:
        tensors = self.gathered.get("state_dict") or self.model.state_dict()
        bad = [k for k, v in tensors.items() if isinstance(v, Tensor) and not bool(v.isfinite().all())]
        if bad:
            raise NotFinite(
                f"{path} is not written: {len(bad)} of {len(tensors)} tensors are not finite ({bad[0]}); earlier "
                "checkpoints are kept: continue from one with --resume and a lower optim_wrapper.optimizer.lr"
            )

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        model = self.model.module if is_model_wrapper(self.model) else self.model
        return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]

    def _gather(self, optimizer: bool) -> dict:
        """The parts of a checkpoint that all processes must compute together.

        In the middle of gradient accumulation: the partial sums, averaged over the processes; after resuming, every
        process continues from the mean. Of a sharded model: also the unsharded weights and optimizer state.
        """
        gathered, sharded = dict(run=run_facts(self)) if optimizer else {}, is_sharded(self.model)
        if optimizer and not self.optim_wrapper.should_update():
            gradients = {name: p.grad.clone() for name, p in self._trained() if p.grad is not None}
            if not sharded:  # sharded gradients are means already
                for gradient in gradients.values():
                    all_reduce(gradient, "mean")
            gathered["accumulated_gradients"] = gather_tensors(gradients)
        if sharded:
            gathered["state_dict"] = gather_weights(self.model)
            if optimizer:
                gathered["optimizer"] = gather_tensors(self.optim_wrapper.state_dict())
        return gathered
