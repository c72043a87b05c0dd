"""Finds a trained model, wherever it comes from, and builds it.

A configuration file (.py) is the user's own program. A configuration that comes with weights is data: see
`arm_toolkit.engine.config_text`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from arm_backbone.checkpoint.errors import CheckpointError
from arm_backbone.checkpoint.files import model_state, read_checkpoint
from arm_backbone.checkpoint.hub import local_path
from arm_backbone.checkpoint.load import load_exact, named_as_in, require_match

from ..engine.checks import config_errors, dicts
from ..engine.config import config_from_text, load_config
from ..engine.config_text import buildable
from ..engine.launch import use_group_norm
from ..errors import ConfigError, one_line, user_errors
from .published import is_published, read_published

KINDS = (
    "a published folder, hf://OWNER/NAME, a checkpoint of a training (.pth), or a configuration (.py) with --checkpoint"
)


@dataclass(frozen=True)
class Trained:
    """A trained model that is not built yet.

    Attributes:
        where: its file or folder, for messages.
        cfg: the configuration that it was trained with.
        state: its tensors by name.
        meta: what the weights say about the data set: `classes`, `palette`, `reduce_zero_label`; any may be missing.
        is_program: the configuration is a file that the user named and that was executed.
    """

    where: str
    cfg: Config
    state: dict[str, Tensor]
    meta: dict
    is_program: bool

    @property
    def scope(self) -> str:
        return self.cfg.get("default_scope") or "mmengine"

    def part(self, value: object, key: str) -> object:
        """A part of the configuration that may be built, by its key: checked, unless it is the user's own program.

        Raises:
            ConfigError: naming the file, the key and what is not accepted.
        """
        value = Config(dict(part=value)).to_dict()["part"]  # plain dicts and lists, and a copy
        if not self.is_program:
            value = buildable(value, key, self.where, self.scope)
        return Config(dict(part=value)).part  # OpenMMLab reads keys as attributes


def find(model: str | os.PathLike, checkpoint: str | os.PathLike | None = None) -> Trained:
    """Read a model's configuration and weights; arguments and errors are those of `arm_toolkit.inference.load`."""
    name, path = os.fspath(model), Path(local_path(model))
    if path.suffix == ".py" and not path.is_dir():
        if checkpoint is None:
            raise ConfigError(
                f"{name} is a configuration, which holds no weights; add --checkpoint FILE (in Python: load({name!r}, "
                "checkpoint=FILE))"
            )
        return _from_configuration(str(path), local_path(checkpoint))
    if checkpoint is not None:
        raise ConfigError(
            f"--checkpoint {os.fspath(checkpoint)}: only a configuration (.py) needs it, and {name} is not one; give "
            "either of them alone"
        )
    if path.is_dir():
        return _from_folder(path)
    if not path.exists():
        raise ConfigError(f"{name} does not exist; give {KINDS}")
    return _from_checkpoint(str(path))


def build(model: str | os.PathLike, checkpoint: str | os.PathLike | None = None) -> tuple[nn.Module, Config]:
    """A trained model in evaluation mode on the CPU, and its configuration.

    Arguments and errors are those of `arm_toolkit.inference.load`.
    """
    trained = find(model, checkpoint)
    return build_module(trained), trained.cfg


def build_module(trained: Trained) -> nn.Module:
    """The model in evaluation mode on the CPU, every tensor loaded.

    Raises:
        ConfigError: if the configuration's model cannot be built.
        CheckpointError: if the weights do not fit it.
    """
    for node in dicts(trained.cfg.model):
        if isinstance(node.get("init_cfg"), dict) and node.init_cfg.get("type") == "Pretrained":
            node.init_cfg = None  # all tensors are loaded below
    with building(trained, "the model"):
        if not trained.is_program:
            _check_sizes(trained)
        module = revert_sync_batchnorm(MODELS.build(trained.part(trained.cfg.model, "model")))
    load_exact(module, trained.state, trained.where)
    return module.eval()


def _check_sizes(trained: Trained) -> None:
    """Compare shapes before the model takes memory: a configuration from somebody else can state any size."""
    try:
        with torch.device("meta"):
            draft = MODELS.build(trained.part(trained.cfg.model, "model"))
    except (NotImplementedError, RuntimeError) as error:
        if "meta" in str(error):
            return  # some constructors compute with numbers, which a meta tensor does not have
        raise
    require_match(draft.state_dict(), named_as_in(draft, trained.state), trained.where)


@contextmanager
def building(trained: Trained, what: str) -> Iterator[None]:
    """Build in the scope of a configuration; any error becomes one line that names file and key."""
    try:
        with DefaultScope.overwrite_default_scope(trained.scope), config_errors(trained.cfg, what):
            yield
    except ConfigError as error:
        raise error if trained.where in str(error) else ConfigError(f"{trained.where}: {error}") from error
    except user_errors():
        raise
    except Exception as error:  # noqa: BLE001 a constructor can raise anything
        raise ConfigError(f"{trained.where}: {what} cannot be built: {one_line(error)}") from error


def _from_configuration(config: str, checkpoint: str) -> Trained:
    contents = read_checkpoint(checkpoint)
    cfg = load_config(config)
    use_group_norm(cfg)  # as in training and testing
    return Trained(checkpoint, cfg, model_state(contents, where=checkpoint), _dataset_meta(contents), is_program=True)


def _from_checkpoint(path: str) -> Trained:
    contents = read_checkpoint(path)
    text = _dict(contents.get("meta")).get("cfg")
    if not isinstance(text, str):
        raise CheckpointError(
            f"{path} holds no configuration (meta.cfg), which our trainings write; give the configuration that it was "
            f"trained with: CONFIG --checkpoint {path}"
        )
    cfg = config_from_text(text, path)
    if not isinstance(cfg.get("model"), dict):
        raise ConfigError(f"{path}: its configuration has no model; give CONFIG --checkpoint {path}")
    return Trained(path, cfg, model_state(contents, where=path), _dataset_meta(contents), is_program=False)


def _from_folder(folder: Path) -> Trained:
    if not is_published(folder):
        found = sorted(folder.glob("*.pth"), key=lambda file: (file.name.startswith("best_"), file.stat().st_mtime))
        hint = f"give a checkpoint in it, as {found[-1]}" if found else f"give {KINDS}"
        raise ConfigError(f"{folder} was not written by tools/publish.py; {hint}")
    published = read_published(folder)
    state = model_state(read_checkpoint(published.weights), where=published.weights)
    meta = dict(classes=published.classes or None, palette=published.palette)
    return Trained(str(published.weights), published.config, state, meta, is_program=False)


def _dataset_meta(contents: dict) -> dict:
    return _dict(_dict(contents.get("meta")).get("dataset_meta"))


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}
