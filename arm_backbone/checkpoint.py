"""Reading, converting and loading checkpoints: safe, and with every tensor accounted for.

A file is a training checkpoint of this toolkit (`state_dict` and `meta`), a converted `.pth`, or `.safetensors`. What
it holds is told by its keys, not by its name.
"""

import argparse
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .pos_embed import resize_pos_embed

FORMAT_VERSION = 1
PER_DIRECTION = ("conv_weight", "conv_bias", "x_proj_weight", "dt_proj_weight", "dt_proj_bias", "A_log", "D")
_DIRECTION_KEY = re.compile(r"(?:^|\.)blocks\.\d+\.mixer\.(?:" + "|".join(PER_DIRECTION) + r")$")
_SHOWN = 5  # names listed in an error


class CheckpointError(ValueError):
    """A file that cannot be read, or does not fit the model; the message says what to do."""


@dataclass
class Accounting:
    """What became of every tensor, of the file and of the model.

    Attributes:
        used: target key -> how it was made ("copied", "one scan copied to 4", ...).
        dropped: source key -> reason.
        new: target key that the file does not provide -> reason.
    """

    used: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{count:5d} tensors {how}" for how, count in Counter(self.used.values()).items()]
        for title, table in (("dropped", self.dropped), ("new", self.new)):
            groups: dict[str, list[str]] = {}
            for key, reason in table.items():
                groups.setdefault(reason, []).append(key)
            for reason, keys in groups.items():
                names = sorted({".".join(key.split(".")[:2]) for key in keys})
                shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
                lines.append(f"{len(keys):5d} tensors {title}: {reason} ({shown})")
        return "\n".join(lines)


def read_checkpoint(path: str | os.PathLike, trust: bool = False) -> dict:
    """Load a file without running code from it: tensors, numbers, strings, containers and an argparse.Namespace only.

    Args:
        trust: unpickle anything. Only for files whose origin you know.

    Raises:
        CheckpointError: for a missing, broken or unsafe file.
    """
    path = Path(path)
    require_file(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                meta = dict(file.metadata() or {})
                return {"state_dict": {key: file.get_tensor(key) for key in file.keys()}, "meta": meta}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is no complete safetensors file ({error}); fetch or convert it again"
            ) from None
    try:
        if trust:
            checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # not even a pickle
            raise CheckpointError(f"{path} is no PyTorch checkpoint; fetch or save it again") from None
        reason = re.search(r"GLOBAL (\S+)|Unsupported (?:global|class|operand)\S* ?(\S*)", str(error))
        what = next((group for group in reason.groups() if group), "an object") if reason else "an object"
        raise CheckpointError(
            f"{path} holds {what}, whose loading can execute code; if you know where the file comes from, "
            "convert it with tools/convert_checkpoint.py --trust"
        ) from None
    except Exception as error:  # noqa: BLE001 what a broken pickle does is anyone's guess
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is no complete PyTorch checkpoint ({detail}); fetch or save it again") from None
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a dict of tensors; save a state_dict")
    return checkpoint


def require_file(path: str | os.PathLike) -> None:
    """Raise a CheckpointError that says how to make the file, if it does not exist."""
    path = Path(path)
    if path.is_file():
        return
    remedy = "give the path of an existing .pth or .safetensors file"
    if path.name.endswith("_pretrain.pth"):
        remedy = f"make it with: python tools/convert_checkpoint.py PRETRAINING_CHECKPOINT {path} --to backbone"
    raise CheckpointError(f"{path} does not exist; {remedy}")


def model_state(checkpoint: dict) -> dict[str, Tensor]:
    """The model's tensors in a checkpoint: under `state_dict`, under `model`, or the dict itself.

    Raises:
        CheckpointError: if there are none.
    """
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if not checkpoint or not all(isinstance(value, Tensor) for value in checkpoint.values()):
        raise CheckpointError(
            f"no model weights: expected tensors, or a key state_dict or model; found {_some(list(checkpoint))}"
        )
    return dict(checkpoint)


def detect_kind(state: dict[str, Tensor]) -> str:
    """'pretrain', 'classifier', 'backbone' or 'dense' (detector or segmenter), told by the keys.

    Raises:
        CheckpointError: if it is none of them.
    """
    probe = "blocks.0.mixer.in_proj.weight"
    if f"encoder.{probe}" in state:
        return "pretrain"
    if f"backbone.{probe}" in state:
        return "dense"
    if probe in state:
        return "classifier" if "head.weight" in state else "backbone"
    raise CheckpointError(f"no ARM weights: no key ends in {probe}; found {_some(list(state))}")


_BACKBONE_PREFIX = {"pretrain": "encoder.", "dense": "backbone.", "classifier": "", "backbone": ""}
_DROPPED = {
    "pretrain": "belongs to the pretraining decoder",
    "dense": "belongs to the neck or the heads",
    "classifier": "belongs to the classification head",
    "backbone": "",
}


def to_backbone(state: dict[str, Tensor], scans: int = 4) -> tuple[dict[str, Tensor], Accounting]:
    """The backbone's tensors from a checkpoint of any kind, one scan copied to `scans`.

    Raises:
        CheckpointError: if nothing of ARM is in it, or its four scans would have to become one.
    """
    kind = detect_kind(state)
    prefix = _BACKBONE_PREFIX[kind]
    result, accounting = {}, Accounting()
    for key, tensor in state.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or (kind == "classifier" and name.startswith(("head.", "norm."))):
            accounting.dropped[key] = _DROPPED[kind]
        else:
            result[name], accounting.used[name] = _match_scans(name, tensor, scans)
    return result, accounting


def _match_scans(name: str, tensor: Tensor, scans: int) -> tuple[Tensor, str]:
    if not _DIRECTION_KEY.search(name) or len(tensor) == scans:
        return tensor, "copied"
    if len(tensor) != 1:
        raise CheckpointError(
            f"{name} has {len(tensor)} scans, the model {scans}; only one scan can be copied to several"
        )
    return tensor.expand(scans, *tensor.shape[1:]).clone(), f"one scan copied to {scans}"


def load_backbone(
    model: nn.Module, state: dict[str, Tensor], where: str, new: Callable[[str], str | None] = lambda name: None
) -> Accounting:
    """Load an ARM trunk from a checkpoint of any kind, copying the scan and resizing the position embedding as needed.

    Args:
        where: name of the file, for messages.
        new: for a tensor that the file lacks, the reason why it may start fresh, or None if it must not.

    Raises:
        CheckpointError: when a tensor of the file or of the model is left over, or a shape differs.
    """
    target = model.state_dict()
    state, accounting = to_backbone(state, model.scans)
    if "pos_embed" in state and "pos_embed" in target:
        grid = target["pos_embed"].shape[1:3]
        if state["pos_embed"].shape[1:3] != grid:
            source = "x".join(map(str, state["pos_embed"].shape[1:3]))
            accounting.used["pos_embed"] = f"resized from {source} to {'x'.join(map(str, grid))}"
            state["pos_embed"] = resize_pos_embed(state["pos_embed"], *grid)
    for key in [key for key in state if key.startswith("out_norms.") and key not in target]:
        accounting.dropped[key] = "another number of output levels"
        del state[key], accounting.used[key]
    for key in target.keys() - state.keys():
        reason = new(key)
        if reason is not None:
            accounting.new[key] = reason
    _require_fit(target, state, where, allowed=accounting.new)
    model.load_state_dict(state, strict=False)
    return accounting


def load_model(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load a whole model, every tensor matched.

    Raises:
        CheckpointError: when one is missing, left over or of another shape.
    """
    _require_fit(model.state_dict(), state, where)
    model.load_state_dict(state)


def _require_fit(target: dict, state: dict, where: str, allowed: dict | None = None) -> None:
    missing = [key for key in target if key not in state and key not in (allowed or {})]
    extra = [key for key in state if key not in target]
    reshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(target[key].shape)}"
        for key in state
        if key in target and state[key].shape != target[key].shape
    ]
    problems = [
        f"{len(names)} of {total} tensors {what} ({_some(names)})"
        for what, names, total in (
            ("of the model missing", missing, len(target)),
            ("of the file unknown to the model", extra, len(state)),
            ("of another shape", reshaped, len(state)),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{where} does not fit the model: {'; '.join(problems)}. {_remedy(state)}")


def _remedy(state: dict[str, Tensor]) -> str:
    try:
        kind = detect_kind(state)
    except CheckpointError:
        return "It holds no ARM weights: give a checkpoint of this model."
    if kind in ("pretrain", "backbone", "classifier"):
        return (
            f"It is a {kind} checkpoint: to start a training from it, give it as "
            "model.backbone.init_cfg.checkpoint (same architecture); testing needs the trained detector or segmenter."
        )
    return "Give the configuration that it was trained with (architecture, classes, heads)."


def _some(names: list[str]) -> str:
    return ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def write_checkpoint(path: str | os.PathLike, state: dict[str, Tensor], meta: dict[str, str | int]) -> None:
    """Write tensors and metadata to `.pth` or `.safetensors`, beside the target first, so that no half file remains."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {**meta, "format_version": FORMAT_VERSION}
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    partial = path.with_name(path.name + ".part")
    try:
        if path.suffix == ".safetensors":
            save_file(state, partial, {key: str(value) for key, value in meta.items()})
        elif path.suffix == ".pth":
            torch.save({"state_dict": state, "meta": meta}, partial)
        else:
            raise CheckpointError(f"{path}: give a file name that ends in .pth or .safetensors")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
