"""Cases of `tools/benchmark.py` for whole models: classifiers by timm name, and dense prediction.

Legend: B images, H x W pixels each.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import timm
import torch
import torch.nn.functional as F
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ..analysis.model_info import from_name
from ..analysis.work import work_of
from ..engine.checks import config_errors
from ..engine.compiled_blocks import compile_arguments, compile_blocks
from ..engine.config import load_config
from ..errors import ConfigError, one_line
from .case import Candidate, Case, Setting, resolved, with_backend

AXIS = "pixels of an image"
RATE = "images/s"
INFERENCE, TRAINING = "inference", "training step"


def training_step(loss: Callable[[], Tensor], model: nn.Module, setting: Setting) -> Callable[[], None]:
    """Forward, backward and an AdamW step, on a CPU fused as in training; gradients are freed afterwards."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=setting.device.type == "cpu" or None)

    def step() -> None:
        with setting.autocast():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(model: nn.Module, images: Tensor, setting: Setting) -> Callable[[], object]:
    """The forward without gradients."""

    def run() -> object:
        with torch.no_grad(), setting.autocast():
            return model(images)

    return run


def _case(kind: str, images: Tensor, what: str, setting: Setting) -> Case:
    """A case without candidates, of work on `images` (B, C, H, W); its title starts with `what`."""
    batch, _, height, width = images.shape
    title = f"{what}batch {batch}, {height} x {width} pixels, {setting.type_name}"
    return Case(kind, height * width, AXIS, title, [], unit=RATE)


def model_cases(
    setting: Setting, names: list[str], sizes: list[tuple[int, int] | None], mode: str | None = None
) -> Iterator[Case]:
    """Inference and a training step of classifiers in timm's registry, which includes ours, with their counted work.

    With a dtype other than float32, inference is also timed with weights of that dtype instead of autocast ("weights
    held").

    Args:
        sizes: (H, W) of the images; None is the first classifier's default.
        mode: of torch.compile; classifiers are then also timed with compiled blocks.

    Raises:
        ConfigError: if a name or the mode is unknown, or a classifier cannot be built for a size.
    """
    names, arguments = list(dict.fromkeys(names)), compile_arguments(mode)
    for size in sizes:
        size = size or from_name(names[0])[1][1:]
        images = setting.randn(setting.batch, 3, *size)
        models = {name: _classifier(name, size) for name in names}
        for kind in (INFERENCE, TRAINING):
            is_training = kind == TRAINING
            case = _case(kind, images, "", setting)
            for name, (model, meta) in models.items():
                model, loss = model.to(setting.device).train(is_training), _classify(model, images)
                run = training_step(loss, model, setting) if is_training else inference(model, images, setting)
                counted = _classify(meta.train(is_training), images.to("meta"))
                work = work_of(counted, setting.batch, is_training)
                case.candidates.append(Candidate(name, run, setting.batch, counted=work))
                if arguments is not None:
                    run = _compiled(model, images, arguments, setting)
                    case.candidates.append(Candidate(f"{name}, compiled", run, setting.batch, counted=work))
            if not is_training and setting.dtype != torch.float32:
                as_held = replace(setting, dtype=torch.float32)  # without autocast
                for candidate in [found for found in case.candidates if found.name in models]:
                    held = copy.deepcopy(models[candidate.name][0]).to(setting.dtype)
                    run = inference(held, images.to(setting.dtype), as_held)
                    case.candidates.append(replace(candidate, name=f"{candidate.name}, weights held", run=run))
            yield case


def _compiled(model: nn.Module, images: Tensor, arguments: dict, setting: Setting) -> Callable[[], object]:
    """Inference of a copy with compiled blocks, or a training step if the model is in training mode."""
    model = copy.deepcopy(model)
    compile_blocks(model, arguments)
    is_training = model.training
    run = training_step(_classify(model, images), model, setting) if is_training else inference(model, images, setting)

    def step() -> object:
        torch.compiler.cudagraph_mark_step_begin()  # graphs may overwrite the last step's results
        return run()

    return step


def _classifier(name: str, size: tuple[int, int]) -> tuple[nn.Module, nn.Module]:
    """A classifier, and the same on the meta device."""
    try:
        meta, _ = from_name(name, size)  # raises a helpful error for an unknown name
        return timm.create_model(name, pretrained_cfg_overlay=dict(input_size=(3, *size))), meta
    except ConfigError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        pixels = f"{size[0]} x {size[1]} pixels"
        raise ConfigError(f"{name} cannot be built for images of {pixels}: {one_line(error)}") from error


def _classify(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    labels = torch.arange(len(images), device=images.device) % model.num_classes
    return lambda: F.cross_entropy(model(images), labels)


def dense_cases(
    setting: Setting,
    config: str,
    options: dict,
    sizes: list[tuple[int, int]],
    backends: list[str] = ("auto",),
) -> Iterator[Case]:
    """Inference and a training step of a detector's or segmentor's backbone and neck; the loss is the mean of the maps.

    Raises:
        ConfigError: if the configuration has no backbone and neck, or they cannot be built.
    """
    cfg = load_config(config, options)
    if not {"backbone", "neck"} <= set(cfg.get("model") or {}):
        raise ConfigError(f"{config} has no backbone and neck; see det_configs/ and seg_configs/")
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")), config_errors(cfg, config):
        model = nn.Sequential(MODELS.build(cfg.model.backbone), MODELS.build(cfg.model.neck))
    model = revert_sync_batchnorm(model).to(setting.device)  # SyncBN runs on GPUs only
    for size in sizes:
        images = setting.randn(setting.batch, 3, *size)
        loss = _mean_of_maps(model, images)
        for kind, run in (
            (INFERENCE, inference(model, images, setting)),
            (TRAINING, training_step(loss, model, setting)),
        ):
            model.train(kind == TRAINING)
            case = _case(kind, images, f"backbone and neck of {config}, ", setting)
            for backend in resolved(setting, backends):
                case.candidates.append(Candidate(backend, with_backend(backend, run), setting.batch))
            yield case


def _mean_of_maps(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    return lambda: sum(level.float().mean() for level in model(images))
