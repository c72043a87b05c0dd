"""Cases of `tools/benchmark.py pretrain`: a training step of paradigms and encoders side by side, and data loaders.

Legend: B images, H x W pixels each.
"""

from collections.abc import Callable, Iterator
from itertools import chain, repeat

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from arm_images.errors import DataError
from arm_pretrain import MoCoPretrainer

from ..analysis.model_info import image_size
from ..analysis.work import Work, work_of
from ..datasets.transforms import checked_loading
from ..engine.checks import check_data_paths, config_errors
from ..engine.config import load_config
from ..errors import ConfigError, one_line
from .case import Candidate, Case, Setting, resolved, with_backend
from .model_cases import AXIS, RATE, TRAINING, training_step


def pretrain_cases(
    setting: Setting, configs: list[str], options: dict, backends: list[str] = ("auto",), data: str | None = None
) -> Iterator[Case]:
    """A training step of each configuration on random images of its own size, and with `data` its data loader alone.

    Candidates are compared per image. MoCo reads two views of each.

    Args:
        configs: of pretraining (any paradigm) or of classifiers, which are trained with labels only.
        options: overrides of configuration keys, as in `--cfg-options`.
        data: folder or list file of images for the data loaders of pretraining; None does not time them.

    Raises:
        ConfigError: if a configuration or a model is invalid.
        DataError: if the images cannot be found or do not fill a batch.
    """
    loaded = {config: load_config(config, options) for config in dict.fromkeys(configs)}
    for config, cfg in loaded.items():
        if not cfg.get("model") or "backbone" in cfg.model:
            raise ConfigError(f"{config} is not a pretraining configuration, nor a classifier's; see pretrain/configs/")
    backends, several = resolved(setting, backends), len(loaded) > 1
    case = Case(TRAINING, 0, AXIS, f"batch {setting.batch}, {setting.type_name}", [], unit=RATE)
    loaders = []
    for config, cfg in loaded.items():
        model, meta = build_models(cfg, config)
        height, width = image_size(meta)
        images = setting.randn(setting.batch, 3, height, width)
        work = _counted(meta, images, config)
        step = training_step(training_loss(model.to(setting.device), images), model, setting)
        title = f"{config}, {height} x {width} pixels"
        for backend in backends:
            name = ", ".join(([title] if several else []) + ([backend] if len(backends) > 1 or not several else []))
            case.candidates.append(Candidate(name, with_backend(backend, step), setting.batch, counted=work))
        case.size = max(case.size, height * width)
        if not several:
            case.title = f"{title}, {case.title}"
        if data is not None and "path" in ((cfg.get("train_dataloader") or {}).get("dataset") or {}):
            loaders.append((cfg, title))
        elif data is not None:
            case.notes.append(f"data loader of {config}: its data set is not a folder of images")
    yield case
    for cfg, title in loaders:
        yield _loader_case(cfg, title, data, setting)


def build_models(cfg: Config, config: str) -> tuple[nn.Module, nn.Module]:
    """The model of a configuration in training mode, and the same on the meta device."""
    with config_errors(cfg, config):
        model = MODELS.build(cfg.model).train()
        with torch.device("meta"):
            return model, MODELS.build(cfg.model).train()


def training_loss(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """The loss of random images (B, 3, H, W): of two views each for MoCo, of labels for a classifier."""
    inputs = torch.stack([images, images.flip(3)], 1) if isinstance(model, MoCoPretrainer) else images
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)  # pretraining ignores them
    return lambda: model(inputs, labels, mode="loss")["loss"]


def _counted(meta: nn.Module, images: Tensor, config: str) -> Work:
    try:
        return work_of(training_loss(meta, images.to("meta")), len(images), backward=True)
    except ValueError as error:  # of a batch that the model refuses
        raise ConfigError(f"{config}, --batch {len(images)}: {one_line(error)}") from error


def _loader_case(cfg: Config, title: str, data: str, setting: Setting) -> Case:
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
    title = f"{title}, batch {setting.batch}, {loader.num_workers} workers"
    case = Case("data loading", setting.batch, "images", title, [], unit=RATE, memory=False)
    case.candidates.append(Candidate("data loader", load, together * setting.batch))
    return case
