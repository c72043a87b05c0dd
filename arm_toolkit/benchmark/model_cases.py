"""Cases of `tools/benchmark.py` for whole models: classifiers by timm name, pretraining, and dense prediction.

Legend: B images, H x W pixels each.
"""

from collections.abc import Callable, Iterator
from itertools import chain, repeat

import timm
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from arm_images.errors import DataError

from ..analysis.model_info import from_name
from ..datasets.transforms import checked_loading
from ..engine.checks import check_data_paths, config_errors
from ..engine.config import load_config
from ..errors import ConfigError, one_line
from .case import Candidate, Case, Setting, resolved, with_backend

AXIS = "pixels of an image"
RATE = "images/s"
INFERENCE, TRAINING = "inference", "training step"


def training_step(loss: Callable[[], Tensor], model: nn.Module, setting: Setting) -> Callable[[], None]:
    """Forward, backward and an AdamW step; gradients are freed afterwards."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

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
    batch, _, height, width = images.shape
    title = f"{what}batch {batch}, {height} x {width} pixels, {setting.type_name}"
    return Case(kind, height * width, AXIS, title, [], unit=RATE)


def model_cases(setting: Setting, names: list[str], sizes: list[tuple[int, int] | None]) -> Iterator[Case]:
    """Inference and a training step of classifiers in timm's registry, which includes ours.

    Args:
        sizes: (H, W) of the images; None is the first classifier's default.

    Raises:
        ConfigError: if a name is unknown, or a classifier cannot be built for a size.
    """
    names = list(dict.fromkeys(names))
    for size in sizes:
        size = size or from_name(names[0])[1][1:]
        images = setting.randn(setting.batch, 3, *size)
        models = {name: _classifier(name, size).to(setting.device) for name in names}
        case = _case(INFERENCE, images, "", setting)
        case.candidates = [
            Candidate(name, inference(model.eval(), images, setting), setting.batch) for name, model in models.items()
        ]
        yield case
        case = _case(TRAINING, images, "", setting)
        for name, model in models.items():
            labels = torch.arange(setting.batch, device=setting.device) % model.num_classes
            step = training_step(_classify(model.train(), images, labels), model, setting)
            case.candidates.append(Candidate(name, step, setting.batch))
        yield case


def _classifier(name: str, size: tuple[int, int]) -> nn.Module:
    try:
        from_name(name, size)  # raises a helpful error for an unknown name
        return timm.create_model(name, pretrained_cfg_overlay=dict(input_size=(3, *size)))
    except ConfigError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        pixels = f"{size[0]} x {size[1]} pixels"
        raise ConfigError(f"{name} cannot be built for images of {pixels}: {one_line(error)}") from error


def _classify(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(model(images), labels)


def pretrain_cases(
    setting: Setting, config: str, options: dict, backends: list[str] = ("auto",), data: str | None = None
) -> Iterator[Case]:
    """A training step of a pretraining configuration on random images, and with `data` its data loader alone.

    Args:
        options: overrides of configuration keys, as in `--cfg-options`.
        data: folder or list file of images for the data loader; None does not time it.

    Raises:
        ConfigError: if the configuration or the model is invalid.
        DataError: if the images cannot be found or do not fill a batch.
    """
    cfg = load_config(config, options)
    if (cfg.get("model") or {}).get("type") != "ARMPretrainer":
        raise ConfigError(f"{config} is not a pretraining configuration; see pretrain/configs/")
    with config_errors(cfg, config):
        model = MODELS.build(cfg.model).to(setting.device).train()
    images = setting.randn(setting.batch, 3, *model.encoder.img_size)
    case = _case(TRAINING, images, f"{config}, ", setting)
    step = training_step(lambda: model(images, mode="loss")["loss"], model, setting)
    for backend in resolved(setting, backends):
        case.candidates.append(Candidate(backend, with_backend(backend, step), setting.batch))
    yield case
    if data is not None:
        yield _loader_case(cfg, data, images, setting)


def _loader_case(cfg: Config, data: str, images: Tensor, setting: Setting) -> Case:
    cfg.train_dataloader.dataset.path = data
    cfg.train_dataloader.update(batch_size=setting.batch, persistent_workers=cfg.train_dataloader.num_workers > 0)
    check_data_paths(cfg, ("train_dataloader",))
    with config_errors(cfg, "train_dataloader"):
        loader = Runner.build_dataloader(checked_loading(cfg.train_dataloader, cfg.get("default_scope")), seed=0)
    if len(loader) == 0:
        raise DataError(f"{data}: its {len(loader.dataset)} images do not fill a batch of {setting.batch}")
    batches = chain.from_iterable(repeat(loader))
    together = max(1, loader.num_workers)  # batches per run, because workers deliver in bursts

    def load() -> None:
        for _ in range(together):
            next(batches)

    load()  # with the two runs before the measurement, this uses up the batches that the workers prepared in advance
    case = _case("data loading", images, f"{loader.num_workers} workers, ", setting)
    case.memory = False
    case.candidates.append(Candidate("data loader", load, together * setting.batch))
    return case


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
