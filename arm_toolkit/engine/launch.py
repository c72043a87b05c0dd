"""Trains and tests any configuration: detection, segmentation, classification or pretraining."""

import argparse
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log

from arm_backbone.checkpoint.accounting import shorten
from arm_backbone.checkpoint.files import CheckpointError, read_checkpoint
from arm_backbone.checkpoint.writing import check_writable
from arm_backbone.timm_backbone import TIMM

from ..errors import ConfigError, one_line, user_errors
from ..machine import compute_faster, cpu_multiplies_bfloat16
from .check_classes import check_classes, use_checked_data
from .checks import (
    check_arguments,
    check_data_paths,
    check_image_size,
    check_num_classes,
    config_errors,
    dicts,
    pretrained_backbone,
)
from .compiled_blocks import compile_arguments
from .environment import check_environment
from .newest import newest_checkpoint
from .outputs import draw, save_results
from .precision import use_dtype
from .runner import ARMRunner
from .values import check_values, require_keys
from .work_dir_lock import is_first_process, one_run, refuse_second_run

WIDTHS = ("channels", "in_channels", "out_channels")  # keys of a model that hold numbers of channels


def prepare(cfg: Config, args: argparse.Namespace) -> None:
    """Set the launcher in a configuration, and adapt it to a batch of one image and to a machine without a GPU.

    Args:
        args: parsed by `add_arguments`.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg.launcher = args.launcher
    if torch.cuda.is_available():
        use_group_norm(cfg)
    else:
        _adapt_to_cpu(cfg)


def _set_work_dir(cfg: Config, args: argparse.Namespace, config_name: str) -> None:
    if args.work_dir is not None and not args.work_dir.strip():
        raise ConfigError(f"--work-dir {args.work_dir!r}: give a folder")
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = f"work_dirs/{config_name}"


@contextmanager
def _network_errors() -> Iterator[None]:
    """Turn the error of a taken port, or of an address that does not answer, into one line."""
    try:
        yield
    except torch.distributed.DistNetworkError as error:
        where = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')} MASTER_PORT={os.environ.get('MASTER_PORT')}"
        raise ConnectionError(f"{where}: {one_line(error)}; give the address of rank 0 and a free port") from error


def _adapt_to_cpu(cfg: Config) -> None:
    """Replace the parts of a configuration that need a GPU, and log the replacements."""
    changes = []
    compute_faster()
    if cfg.launcher != "none":
        if not torch.distributed.is_initialized():
            with _network_errors():
                torch.distributed.init_process_group("gloo")
        if (cfg.get("model_wrapper_cfg") or {}).get("type") != "fully_shard":
            cfg.model_wrapper_cfg = dict(type="CPUDistributedDataParallel", broadcast_buffers=False)
        changes.append(f"{torch.distributed.get_world_size()} processes over gloo")
    optim_wrapper = cfg.get("optim_wrapper")
    if optim_wrapper and optim_wrapper.get("type") == "AmpOptimWrapper":
        optim_wrapper.type = "OptimWrapper"
        for key in ("dtype", "loss_scale"):
            optim_wrapper.pop(key, None)
        changes.append("float32 instead of mixed precision")
    optimizer = (optim_wrapper or {}).get("optimizer") or {}
    if optimizer.get("type") in ("Adam", "AdamW") and not {"foreach", "fused"} & set(optimizer):
        optimizer.fused = True  # a third of the time of PyTorch's default
    use_group_norm(cfg)
    sync = [node for node in dicts(cfg.get("model")) if node.get("type") == "SyncBN"]
    for node in sync:
        node.update(type="BN")
    if sync:
        changes.append("BN instead of SyncBN")
    print_log(f"No GPU found, running on the CPU{': ' if changes else ''}{', '.join(changes)}", logger="current")


def use_group_norm(cfg: Config) -> None:
    """Replace BatchNorm in a segmentor that trains on one image at a time, and log it.

    Of one image pooled to one pixel (UperNet's pyramid pooling) BatchNorm has no statistics.
    """
    single = cfg.get("default_scope") == "mmseg" and (cfg.get("train_dataloader") or {}).get("batch_size") == 1
    model = list(dicts(cfg.get("model")))
    spans_processes = torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", 1)) > 1
    kinds = ("BN",) if spans_processes else ("BN", "SyncBN")
    norms = [node for node in model if node.get("type") in kinds]
    if single and norms:
        # at least two channels a group: GN has no statistics of a single value either
        groups = math.gcd(32, *(node[key] // 2 for node in model for key in WIDTHS if isinstance(node.get(key), int)))
        for node in norms:
            node.update(type="GN", num_groups=groups)
        print_log(f"train_dataloader.batch_size=1: GN with {groups} groups instead of BN", logger="current")


def build_runner(cfg: Config) -> ARMRunner:
    """Build the runner; a wrong argument in the configuration raises a ConfigError."""
    with config_errors(cfg, "the configuration cannot be built"), _network_errors():
        return ARMRunner.from_cfg(cfg)


def run(cfg: Config, action: str) -> tuple[ARMRunner, dict | torch.nn.Module]:
    """Build the runner and call one of its methods.

    If an error occurs before the first batch, a new work dir is removed again. Training locks the work dir.

    Args:
        action: "train" or "test".

    Returns:
        the runner, and what the method returned.
    """
    work_dir = Path(cfg.work_dir).absolute()
    new_folders = [folder for folder in (work_dir, *work_dir.parents) if not folder.exists()]
    with one_run(cfg.work_dir, cfg.launcher) if action == "train" else nullcontext():
        return _run(cfg, action, new_folders)


def _run(cfg: Config, action: str, new_folders: list[Path]) -> tuple[ARMRunner, dict | torch.nn.Module]:
    """`run`, without the lock; removes `new_folders` if nothing is made in the first of them."""
    runner = None
    try:
        try:
            runner = build_runner(cfg)
            return runner, getattr(runner, action)()
        except user_errors():
            raise
        except Exception as error:
            explained = _explain(error, cfg, runner)
            if explained is None:
                if runner is not None and runner.working_on:
                    error.add_note(f"while working on {shorten(runner.working_on)}")
                raise
            raise explained from error
    except (*user_errors(), KeyboardInterrupt) as error:
        if runner is not None and runner.started:
            error.met_alone = True  # an earlier error is the same in every process
        elif new_folders and get_rank() == 0:
            _remove(new_folders[0])
            for folder in new_folders[1:]:
                with suppress(OSError):  # another run has begun in it
                    folder.rmdir()
        raise


def _remove(folder: Path) -> None:
    """Remove a folder, into which TensorBoard's thread may write meanwhile."""
    for _ in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _explain(error: Exception, cfg: Config, runner: ARMRunner | None) -> Exception | None:
    """The one line for an error of another process, or for one that comes before the first iteration is done.

    Until then a value of the configuration, or of the checkpoint that is resumed, is the likely reason. Else None.
    """
    if get_world_size() > 1 and isinstance(error, RuntimeError) and "by peer" in str(error):
        return ConnectionError("another process has stopped; see its error")  # gloo: "Connection closed by peer"
    if cfg.get("compile") and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return ConfigError(f"compile={cfg.compile!r}: {one_line(error)}; without this key nothing is compiled")
    likely = (TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError, RuntimeError)
    if not isinstance(error, likely) or (runner is not None and runner.worked):
        return None
    started = runner is not None and runner.started
    on = f" on {shorten(runner.working_on)}" if started and runner.working_on else ""
    what = f"the first iteration fails{on}" if started else "the run cannot be prepared"
    source = f"the checkpoint {cfg.load_from} or in " if cfg.get("resume") else ""
    return ConfigError(
        f"{what} ({type(error).__name__}: {one_line(error)}); look for a wrong value in {source}the configuration "
        "(ARM_TRACEBACK=1 before the command shows where)"
    )


def train(cfg: Config, args: argparse.Namespace, config_name: str) -> ARMRunner | None:
    """Train the model of a configuration; with `--check` only check it, and return None.

    Args:
        args: parsed by `add_train_arguments`.
        config_name: names the default work dir.
    """
    _check_train(cfg, args, config_name)
    if args.check:
        refuse_second_run(cfg.work_dir)
        print(f"{config_name}: configuration, arguments and files are in order")
        return None
    prepare(cfg, args)
    if args.amp:
        _use_amp(cfg)
    return run(cfg, "train")[0]


def _check_train(cfg: Config, args: argparse.Namespace, config_name: str) -> None:
    """What one process can check before the others start and anything is made; also applies `args`."""
    check_environment(args.launcher)
    require_keys(cfg, "model", "train_dataloader", "train_cfg", "optim_wrapper")
    check_values(cfg)
    compile_arguments(cfg.get("compile"))
    loaders = ("train_dataloader", "val_dataloader")
    check_data_paths(cfg, loaders)
    check_arguments(cfg)
    check_image_size(cfg)
    check_num_classes(cfg)
    check_classes(cfg, loaders)
    use_checked_data(cfg)
    _set_work_dir(cfg, args, config_name)
    if args.auto_scale_lr:
        if not cfg.get("auto_scale_lr"):
            raise ConfigError("--auto-scale-lr: the configuration has no auto_scale_lr=dict(base_batch_size=...)")
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = newest_checkpoint(Path(cfg.work_dir)) if args.resume == "auto" else args.resume
        if cfg.load_from is None:
            raise CheckpointError(
                f"--resume: {cfg.work_dir} contains no checkpoint; omit --resume to start from the beginning"
            )
    if cfg.get("load_from"):
        read_checkpoint(cfg.load_from, mmap=True)
    backbone = pretrained_backbone(cfg)
    if backbone is not None:
        if cfg.get("resume") or cfg.get("load_from"):
            backbone.init_cfg = None  # the whole model is loaded
        elif backbone.init_cfg.checkpoint != TIMM:
            try:
                read_checkpoint(backbone.init_cfg.checkpoint, mmap=True)
            except CheckpointError as error:
                scratch = "--cfg-options model.backbone.init_cfg=None"
                raise CheckpointError(f"{error} (or train from scratch: {scratch})") from None


def _use_amp(cfg: Config) -> None:
    if cfg.optim_wrapper.get("type", "OptimWrapper") not in ("OptimWrapper", "AutoAmpOptimWrapper"):
        return
    if torch.cuda.is_available():
        cfg.optim_wrapper.update(type="AmpOptimWrapper", dtype="bfloat16")
    else:
        cfg.optim_wrapper.type = "CPUAmpOptimWrapper"
        slower = "" if cpu_multiplies_bfloat16() else ", which is slower than float32 on this processor"
        print_log(f"--amp: bfloat16{slower}", logger="current")


def test(cfg: Config, args: argparse.Namespace, config_name: str) -> dict | None:
    """Evaluate a checkpoint; with `--check` only check, and return None.

    Args:
        args: parsed by `tools/test.py`: `checkpoint`, `out`, `show_dir`, `tta`, `dtype`, and those of `add_arguments`.
        config_name: names the default work dir.

    Returns:
        the metrics.
    """
    check_environment(args.launcher)
    read_checkpoint(args.checkpoint, mmap=True)
    if cfg.get("test_dataloader") is None:
        raise ConfigError("the configuration has no test_dataloader: a pretraining model cannot be tested")
    require_keys(cfg, "model", "test_dataloader", "test_cfg", "test_evaluator")
    check_values(cfg)
    check_data_paths(cfg, ("test_dataloader",))
    check_arguments(cfg)
    check_classes(cfg, ("test_dataloader",))
    use_checked_data(cfg)
    _set_work_dir(cfg, args, config_name)
    cfg.load_from = args.checkpoint
    backbone = pretrained_backbone(cfg)
    if backbone is not None:
        backbone.init_cfg = None
    if args.out is not None:
        save_results(cfg, args.out)
    if args.show_dir is not None:
        draw(cfg, args.show_dir)
    if args.tta:
        if not cfg.get("tta_model") or not cfg.get("tta_pipeline"):
            raise ConfigError("--tta: the configuration has no tta_model and tta_pipeline")
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = dict(**cfg.tta_model, module=cfg.model)
    use_dtype(cfg, args.dtype)
    if args.check:
        print(f"{config_name}: configuration, arguments and files are in order")
        return None
    if is_first_process(args.launcher):  # before a test that can take hours
        for out in filter(None, (args.out, args.show_dir)):
            check_writable(out if Path(out).suffix else Path(out, "file"))
    prepare(cfg, args)
    return run(cfg, "test")[1]
