"""Writes a published folder from a checkpoint: weights, configuration as data, model card; and uploads it."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from timm.models import save_for_hf
from torch import Tensor

from arm_backbone import __version__
from arm_backbone.checkpoint.convert import detect_kind
from arm_backbone.checkpoint.errors import CheckpointError
from arm_backbone.checkpoint.files import find_file, model_state, naming, read_checkpoint, write_checkpoint
from arm_backbone.checkpoint.folder import CONFIG, KEY, WEIGHTS, read_config, sha256_of
from arm_backbone.checkpoint.load import load_exact
from arm_backbone.checkpoint.writing import WriteError, replacing
from arm_backbone.timm_backbone import TimmClassifier

from ..engine.checks import config_errors, dicts
from ..engine.config import config_from_text, load_config
from ..engine.structure import TASKS
from ..errors import ConfigError
from .build import build
from .example import write_example
from .model_card import Card, write_card
from .published import FORMAT, Published, read_published
from .published_config import published_config, to_json
from .run_metrics import Metrics, find_metrics
from .timm_form import arguments_of, data_config, timm_model

CARD, LOG, EXAMPLE = "README.md", "log.jsonl", "example.jpg"
WRITTEN = {CONFIG, WEIGHTS, CARD, LOG, EXAMPLE}
TRAINING_ONLY = ("type", "drop_rate", "drop_path_rate", "with_cp", "reference_init")  # arguments of a classifier


@dataclass(frozen=True)
class Statements:
    """What only the author knows.

    Attributes:
        datasets: that the model was trained on.
        licence: of the weights, an identifier of the hub as "apache-2.0".
        example: an image to draw predictions on.
    """

    datasets: tuple[str, ...] = ()
    licence: str | None = None
    example: Path | None = None


@dataclass
class _Model:
    """What a folder is made of."""

    state: dict[str, Tensor]
    config: dict
    task: str | None
    classes: list[str]
    palette: list | None
    timm: object = None  # the model, if timm has it
    transform: dict | None = None  # arguments of timm's transform
    notes: Sequence[str] = ()


def publish(checkpoint: str, folder: Path, config: str | None, statements: Statements) -> Published:
    """Write a published folder, and read it again.

    Args:
        checkpoint: a detector, segmentor, classifier, backbone or pretraining model.
        folder: to write; an earlier one of this function is replaced.
        config: configuration file of the training, for a checkpoint that does not hold it; else None.

    Raises:
        CheckpointError, ConfigError: if the checkpoint, its configuration or the folder is not what is needed;
            nothing is written.
        WriteError: if the folder cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    check_target(folder)
    if statements.example is not None and not statements.example.is_file():
        raise ConfigError(f"--example {statements.example} does not exist; give an image")
    contents = read_checkpoint(checkpoint)
    meta = contents["meta"] if isinstance(contents.get("meta"), dict) else {}
    cfg = _training_config(meta, checkpoint, config)
    model = _collect(contents, meta, cfg, checkpoint)
    metrics = find_metrics(find_file(checkpoint), meta, _by_epoch(cfg))
    averaged = "ema_state_dict" in contents or "model_ema" in contents
    with _replacing_folder(folder) as partial, _named(partial, folder, checkpoint):
        partial.mkdir()
        digest = _write_weights(model, partial)
        _write_config(model, partial, digest, averaged, metrics, statements)
        if metrics.log:
            (partial / LOG).write_text("".join(f"{json.dumps(line)}\n" for line in metrics.log))
        build(partial)  # what nobody could load is not published
        if statements.example is not None:
            write_example(partial, statements.example, partial / EXAMPLE)
        card = _card(folder.name, model, averaged, digest, metrics, statements)
        (partial / CARD).write_text(write_card(card), encoding="utf-8")
    return read_published(folder)


def check_target(folder: Path) -> None:
    """Check that a folder can be written without the loss of anything.

    Raises:
        ConfigError: if it exists and holds anything that `publish` has not written.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder")
    names = {path.name for path in folder.iterdir()}
    if not names:
        return
    try:
        ours = isinstance(read_config(folder).get(KEY), dict)
    except CheckpointError:
        ours = False
    foreign = sorted(names - WRITTEN) if ours else sorted(names)
    if foreign:
        raise ConfigError(f"{folder} exists and holds {foreign[0]}, which would be lost; give a new folder")


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """`replacing`, also of a folder that exists; it is kept if anything fails."""
    earlier = folder.with_name(f".{folder.name}.earlier")
    _restore(earlier, folder)  # of a process that was killed
    shutil.rmtree(earlier, ignore_errors=True)
    try:
        with replacing(folder) as partial:
            yield partial
            if folder.exists():
                os.replace(folder, earlier)
    except BaseException:
        _restore(earlier, folder)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _restore(earlier: Path, folder: Path) -> None:
    if earlier.exists() and not folder.exists():
        os.replace(earlier, folder)


@contextmanager
def _named(partial: Path, folder: Path, checkpoint: str) -> Iterator[None]:
    """Let errors name the checkpoint, or the folder that the user gave, not the one under which it is written."""
    try:
        yield
    except WriteError as error:
        error.args = (str(error).replace(str(partial), str(folder)),)
        raise
    except (CheckpointError, ConfigError) as error:
        text = str(error).replace(str(partial / WEIGHTS), checkpoint)
        error.args = (text.replace(str(partial / CONFIG), f"{checkpoint}: its configuration"),)
        raise


def _training_config(meta: dict, checkpoint: str, config: str | None) -> Config | None:
    if config is not None:
        return load_config(config)
    text = meta.get("cfg")
    return config_from_text(text, str(checkpoint)) if isinstance(text, str) else None


def _by_epoch(cfg: Config | None) -> bool:
    train_cfg = (cfg or {}).get("train_cfg") or {}
    return train_cfg.get("type") == "EpochBasedTrainLoop" or bool(train_cfg.get("by_epoch"))


# --------------------------------------------------------------------------------------------------- the model


def _collect(contents: dict, meta: dict, cfg: Config | None, where: str) -> _Model:
    state = model_state(contents, "model_ema" in contents, where)
    kind = (cfg.get("model") or {}).get("type") if cfg is not None else None
    scope = cfg.get("default_scope") if cfg is not None else None
    if scope in TASKS or kind in ("LinearProbe", "VimLinearProbe"):
        classes, palette = _classes(meta, cfg)
        if not classes:
            raise ConfigError(
                f"{where} does not name its classes; give the configuration of the training with --config, with "
                "metainfo.classes in its data sets"
            )
        task = TASKS.get(scope, "classification")
        return _Model(state, published_config(cfg, where), task, classes, palette)
    if kind in ("ARMClassifier", "VimClassifier", "VMambaClassifier"):
        return _classifier(state, meta, cfg, where)
    if kind == "TimmClassifier":
        return _classifier_of_timm(state, meta, cfg, where)
    with naming(where):
        dense = detect_kind(state) == "dense"
    if dense:
        raise ConfigError(
            f"{where} is a detector or segmentor that does not hold its configuration; give the one of the training "
            "with --config"
        )
    return _encoder(state, where)


def _classes(meta: dict, cfg: Config | None) -> tuple[list[str], list | None]:
    """Names and colours by label: of the checkpoint, else of the configuration's data sets."""
    found = [meta.get("dataset_meta")]
    for loader in ("train_dataloader", "test_dataloader", "val_dataloader"):
        found += [node.get("metainfo") for node in dicts((cfg or {}).get(loader))]
    for info in found:
        if isinstance(info, dict) and isinstance(info.get("classes"), list | tuple):
            classes, palette = [str(name) for name in info["classes"]], info.get("palette")
            fits = isinstance(palette, list | tuple) and len(palette) == len(classes)  # mmdet gives any data set COCO's
            colours = palette if fits else []
            return classes, [[int(part) for part in colour] for colour in colours] or None
    return [], None


def _classifier(state: dict[str, Tensor], meta: dict, cfg: Config, where: str) -> _Model:
    config = published_config(cfg, where)
    classes, _ = _classes(meta, cfg)
    dataset = config["test_dataloader"]["dataset"]
    return _in_timm(state, config["model"], dataset.get("transform"), classes, "classification", where)


def _classifier_of_timm(state: dict[str, Tensor], meta: dict, cfg: Config, where: str) -> _Model:
    """A model of timm's own; its weights are written under timm's names, which our loaders know too."""
    config = published_config(cfg, where)
    arguments = {key: value for key, value in config["model"].items() if key not in TRAINING_ONLY}
    with config_errors(cfg, "model"):
        module = TimmClassifier(**{key: value for key, value in arguments.items() if key != "data_preprocessor"})
    load_exact(module.eval(), state, where)
    config["model"] = dict(type="TimmClassifier") | arguments
    transform = config["test_dataloader"]["dataset"].get("transform")
    classes, _ = _classes(meta, cfg)
    return _Model(module.model.state_dict(), config, "classification", classes, None, module.model, transform)


def _encoder(state: dict[str, Tensor], where: str) -> _Model:
    """A backbone, or a classifier without its configuration."""
    with naming(where):
        arguments = arguments_of(state)
    transform = dict(input_size=max(arguments.get("img_size", (224,))), interpolation="bicubic", crop_pct=0.875)
    transform["crop_mode"] = "squash" if "img_size" in arguments else "center"
    task = "classification" if arguments["num_classes"] else None
    return _in_timm(state, arguments, transform, [], task, where)


def _in_timm(
    state: dict[str, Tensor], arguments: dict, transform: dict | None, classes: list[str], task: str | None, where: str
) -> _Model:
    arguments = {key: value for key, value in arguments.items() if key not in TRAINING_ONLY}
    model, accounting = timm_model(state, where, arguments)
    config = dict(
        default_scope="mmengine",
        custom_imports=dict(imports=["arm_backbone", "arm_toolkit.datasets.class_folder"], allow_failed_imports=False),
        model=dict(type=f"{model.encoder_name}Classifier") | arguments,
        test_dataloader=dict(dataset=dict(type="ClassFolder", transform=transform)),
    )
    notes = str(accounting).splitlines()
    notes = notes if len(notes) > 1 or accounting.dropped or accounting.new else ()  # nothing was adapted
    return _Model(model.state_dict(), config, task, classes, None, model, transform, notes)


# --------------------------------------------------------------------------------------------------- the files


def _write_weights(model: _Model, folder: Path) -> str:
    """Write the weights, and timm's configuration if timm has the model; returns the SHA-256 of the weights."""
    if model.timm is not None:
        options = dict(label_names=model.classes) if model.classes else {}
        data = data_config(model.transform, getattr(model.timm, "img_size", None))
        save_for_hf(model.timm, str(folder), options, safe_serialization=True, data_config=data)
    else:
        write_checkpoint(folder / WEIGHTS, {key: tensor.clone() for key, tensor in model.state.items()}, {})
    (folder / WEIGHTS).chmod(folder.stat().st_mode & 0o666)  # safetensors lets nobody else read it
    return sha256_of(folder / WEIGHTS)


def _write_config(
    model: _Model, folder: Path, digest: str, averaged: bool, metrics: Metrics, statements: Statements
) -> None:
    ours = dict(
        format=FORMAT,
        task=model.task,
        classes=model.classes,
        palette=model.palette,
        sha256=digest,
        moving_average=averaged,
        metrics=metrics.values,
        metrics_source=metrics.source,
        datasets=list(statements.datasets),
        license=statements.licence,
        version=__version__,
        config=to_json(model.config),
    )
    whole = read_config(folder) if (folder / CONFIG).exists() else {}
    (folder / CONFIG).write_text(json.dumps(whole | {KEY: ours}, indent=2, allow_nan=False), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- the card


def _card(name: str, model: _Model, averaged: bool, digest: str, metrics: Metrics, statements: Statements) -> Card:
    return Card(
        name=name,
        model=_description(model.config["model"]),
        task=model.task,
        tags=_tags(model.config["model"]),
        in_timm=model.timm is not None,
        classes=model.classes,
        preprocessing=_preprocessing(model.config),
        parameters=sum(tensor.numel() for tensor in model.state.values()),
        averaged=averaged,
        sha256=digest,
        metrics=metrics,
        datasets=list(statements.datasets),
        licence=statements.licence,
        example=EXAMPLE if statements.example else None,
        notes=list(model.notes),
    )


def _description(model: dict) -> str:
    """A model in words: "MaskRCNN with the backbone ARM base"."""
    encoder = model.get("backbone") or model
    arch, kind = encoder.get("arch", ""), str(encoder.get("type"))
    size = ", ".join(f"{key} {value}" for key, value in arch.items()) if isinstance(arch, dict) else arch
    own = encoder["name"] if kind.startswith("Timm") else f"{kind.removesuffix('Classifier')} {size}".strip()
    return own if encoder is model else f"{model.get('type')} with the backbone {own}"


def _tags(model: dict) -> list[str]:
    """The encoder's names on the hub; none for a model of timm's own."""
    kind = str((model.get("backbone") or model).get("type"))
    if kind.startswith("Timm"):
        return []
    return [next((name for name in ("VMamba", "Vim") if kind.startswith(name)), "ARM").lower(), "mamba"]


def _preprocessing(config: dict) -> list[str]:
    """How an image is prepared, a line for each step."""
    dataset, processor = config["test_dataloader"]["dataset"], config["model"].get("data_preprocessor") or {}
    steps = [step for step in dataset.get("pipeline") or [] if step["type"] not in ("LoadImageFromFile", "LoadImage")]
    lines = [_call(step["type"], step) for step in steps if not step["type"].startswith("Pack")]
    if dataset.get("transform"):
        lines.append(_call("timm.data.create_transform", dataset["transform"]))
    kept = ("mean", "std", "bgr_to_rgb", "pad_size_divisor", "size", "size_divisor", "test_cfg")
    if processor:
        lines.append(_call(processor["type"], {key: processor[key] for key in kept if key in processor}))
    return lines


def _call(name: str, arguments: dict) -> str:
    return f"`{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items() if key != 'type')})`"
