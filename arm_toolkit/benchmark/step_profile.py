"""Shows where the time of a training step or of a test image goes on a CPU, by kinds of operators."""

import os
import time
from collections import Counter
from copy import deepcopy
from itertools import islice

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.autograd.profiler import profile

from arm_backbone.mixer import MambaMixer
from arm_backbone.ss2d import SS2D
from arm_images.errors import DataError

from ..datasets.transforms import checked_loading
from ..engine.checks import check_data_paths, config_errors
from ..engine.config import load_config
from ..engine.launch import use_group_norm
from ..errors import ConfigError
from ..tables import markdown_table
from .case import Setting

# Part of a step -> how the names of its operators begin
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product"),
    "convolutions": tuple(
        f"aten::{name}" for name in ("convolution", "_convolution", "mkldnn_conv", "slow_conv", "_slow_conv")
    ),
    "scan, convolution and gates of the blocks": ("_MambaInner", "_Gate", "arm::"),
    "norms and activations": (
        "_Norm",
        *(f"aten::{name}" for name in ("native_", "gelu", "relu", "clamp", "threshold", "silu", "sigmoid")),
    ),
    "resizing and pooling": tuple(
        f"aten::{name}" for name in ("upsample", "_upsample", "max_pool", "adaptive", "_adaptive")
    ),
    "RoIAlign and NMS": ("torchvision::",),
    "losses and targets": tuple(
        f"aten::{name}" for name in ("_log_softmax", "_softmax", "nll", "topk", "sort", "nonzero", "index", "where")
    ),
    "copies and zeros": tuple(f"aten::{name}" for name in ("copy_", "cat", "fill_", "zero", "clone", "stack", "empty")),
}
REST = "rest"
OPTIMIZER = "optimizer"


def profile_steps(
    setting: Setting, config: str, options: dict, batch: int | None, steps: int, test: bool
) -> tuple[str, list[dict]]:
    """Profile training steps, or test images, of a detector, segmentor or classifier on its own data.

    The weights are random, and one step more runs before the measurement.

    Args:
        options: overrides of configuration keys, as in `--cfg-options`.
        batch: images per step; None is the configuration's.
        steps: that are measured, each on another batch.
        test: whether to profile `test_step` instead of training.

    Returns:
        A title, and for each part of a step a dict with part, seconds (per step) and share. Loading, which data workers
        do at the same time, has no share.

    Raises:
        ConfigError: if the configuration or its model is invalid.
        DataError: if the data are missing, or too few for the steps.
    """
    cfg = load_config(config, options)
    key = "test_dataloader" if test else "train_dataloader"
    if not cfg.get("model") or not cfg.get(key):
        raise ConfigError(f"{config} has no model and {key}; see det_configs/, seg_configs/ and cls_configs/")
    init_default_scope(cfg.get("default_scope", "mmengine"))
    check_data_paths(cfg, (key,))
    if batch is not None:
        cfg[key].batch_size = batch
    if not test:
        use_group_norm(cfg)
    with config_errors(cfg, config):
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).train(not test)
    batches, loading = _batches(cfg, key, steps + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)  # as in training
    for module in model.modules():
        if isinstance(module, MambaMixer | SS2D):
            _name_operators(module)
    run = _test_step if test else _training_step
    run(model, batches[0], optimizer, setting)
    seconds, updates = 0.0, 0.0
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler would warn about the missing GPU
    with profile() as record:
        for data in batches[1:]:
            start = time.perf_counter()
            updates += run(model, data, optimizer, setting)
            seconds += time.perf_counter() - start
    images = len(batches[0]["inputs"])
    rows = _rows(record, steps, seconds, updates)
    rows.append(dict(part="loading, in a data worker", seconds=loading, share=None))
    kind = "test" if test else "training"
    size = " x ".join(str(n) for n in batches[0]["inputs"][0].shape[1:])
    title = f"{kind} step of {config}, batch {images}, the first image {size} pixels, {setting.type_name}"
    return f"{title}: {seconds / steps:.3g} s, {images * steps / seconds:.3g} images/s", rows


def _batches(cfg: Config, key: str, number: int) -> tuple[list[dict], float]:
    """The first batches of a data loader, and the seconds that loading one takes."""
    loader = deepcopy(cfg[key])
    loader.update(num_workers=0, persistent_workers=False)
    with config_errors(cfg, key):
        loader = Runner.build_dataloader(checked_loading(loader, cfg.get("default_scope")), seed=0)
    start = time.perf_counter()
    batches = list(islice(loader, number))
    if len(batches) < number:
        raise DataError(f"{key}: {len(batches)} batches, but --steps {number - 1} needs {number}")
    return batches, (time.perf_counter() - start) / number


def _name_operators(mixer: nn.Module) -> None:
    """Give the profiler a name for the mixer's own operators: without gradients they are plain calls of a library."""
    open_ranges = []

    def start(*args: object) -> None:
        open_ranges.append(torch.profiler.record_function("arm::mixer"))
        open_ranges[-1].__enter__()

    def end(*args: object) -> None:
        open_ranges.pop().__exit__(None, None, None)

    mixer.register_forward_pre_hook(start)
    mixer.register_forward_hook(end)


def _training_step(model: nn.Module, data: dict, optimizer: torch.optim.Optimizer, setting: Setting) -> float:
    """One step; return the seconds of the optimizer."""
    with setting.autocast():
        losses = model(**model.data_preprocessor(data, True), mode="loss")
    model.parse_losses(losses)[0].backward()
    start = time.perf_counter()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def _test_step(model: nn.Module, data: dict, optimizer: torch.optim.Optimizer, setting: Setting) -> float:
    with torch.no_grad(), setting.autocast():
        model.test_step(data)
    return 0.0


def _rows(record: profile, steps: int, seconds: float, updates: float) -> list[dict]:
    """The parts of a step, the longest first; the rest is what they do not cover, the interpreter included.

    Args:
        seconds, updates: of all steps, and of the optimizer in them.
    """
    spent = Counter({OPTIMIZER: updates} if updates else {})
    for event in record.key_averages():
        spent[part_of(event.key)] += event.self_cpu_time_total / 1e6
    spent[REST] = seconds - sum(spent[part] for part in spent if part != REST)
    parts = sorted(spent, key=lambda part: (part == REST, -spent[part]))
    return [dict(part=part, seconds=spent[part] / steps, share=spent[part] / seconds) for part in parts]


def part_of(operator: str) -> str:
    """The part of a step that an operator belongs to."""
    return next((part for part, names in PARTS.items() if operator.startswith(names)), REST)


def profile_table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    cells = [
        (row["part"], f"{1e3 * row['seconds']:.0f}", "" if row["share"] is None else f"{100 * row['share']:.0f} %")
        for row in rows
    ]
    return markdown_table(("part", "ms per step", "share"), cells, "lrr")
