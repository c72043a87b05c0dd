"""Reads checkpoint files without running code from them, and writes files completely or not at all.

A checkpoint file is a training checkpoint of this toolkit (`state_dict` and `meta`) or of the authors (`model`, `args`,
perhaps `model_ema`), a converted `.pth`, or a `.safetensors` file.
"""

import argparse
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .accounting import shorten

FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit the model; the message says what to do."""


def read_checkpoint(path: str | os.PathLike, trust: bool = False) -> dict:
    """Load a checkpoint file without running code from it.

    The file may hold tensors, numbers, strings, containers and argparse.Namespace.

    Args:
        path: `.pth` (or any other PyTorch file) or `.safetensors`.
        trust: unpickle any object, which can run code. Only for files whose origin you know.

    Returns:
        the contents of the file; for safetensors a dict with `state_dict` and `meta`.

    Raises:
        CheckpointError: for a missing, broken or unsafe file, or one that does not hold a dict.
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
                f"{path} is not a complete safetensors file ({error}); download or convert it again"
            ) from None
    try:
        if trust:
            checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # not even a pickle
            raise CheckpointError(f"{path} is not a PyTorch checkpoint; download or save it again") from None
        reason = re.search(r"GLOBAL (\S+)|Unsupported (?:global|class|operand)\S* ?(\S*)", str(error))
        what = next((group for group in reason.groups() if group), "an object") if reason else "an object"
        raise CheckpointError(
            f"{path} holds {what}, which can execute code when it is loaded; if you know where the file comes from, "
            "convert it with tools/convert_checkpoint.py --trust"
        ) from None
    except Exception as error:  # noqa: BLE001 a broken pickle can raise anything
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is not a complete PyTorch checkpoint ({detail}); download or save it again"
        ) from None
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a dict of tensors; save a state_dict")
    return checkpoint


def require_file(path: str | os.PathLike) -> None:
    """Raise a CheckpointError with a remedy if the file does not exist."""
    path = Path(path)
    if path.is_file():
        return
    remedy = "give the path of an existing .pth or .safetensors file"
    if path.name.endswith("_pretrain.pth"):
        remedy = f"make it with: python tools/convert_checkpoint.py PRETRAINING_CHECKPOINT {path} --to backbone"
    raise CheckpointError(f"{path} does not exist; {remedy}")


def model_state(checkpoint: dict, ema: bool = False) -> dict[str, Tensor]:
    """The tensors of the model in a checkpoint, from its key `state_dict` or `model`, or from the dict itself.

    Args:
        ema: take the moving average of the weights. The authors' files hold it in `model_ema`. Ours hold it in
            `state_dict`, because evaluation uses it, and the plain weights in `ema_state_dict`.

    Raises:
        CheckpointError: if the checkpoint does not hold these tensors.
    """
    if ema and "ema_state_dict" not in checkpoint:
        if not isinstance(checkpoint.get("model_ema"), dict):
            raise CheckpointError(
                f"no EMA weights: no key model_ema or ema_state_dict among {shorten(list(checkpoint))}; omit --ema"
            )
        checkpoint = checkpoint["model_ema"]
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if not checkpoint or not all(isinstance(value, Tensor) for value in checkpoint.values()):
        raise CheckpointError(
            f"no model weights: expected tensors, or a key state_dict or model; found {shorten(list(checkpoint))}"
        )
    return dict(checkpoint)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file or a new folder next to its final place, then rename it: readers never see an incomplete one.

    Yields:
        the path to write to: `path` with ".part" appended. It does not exist at first; if the block raises, what it
        wrote there is removed.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    try:
        _remove(partial)  # left by a process that was killed
        yield partial
        os.replace(partial, path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_checkpoint(
    path: str | os.PathLike, state: dict[str, Tensor], meta: dict[str, str | int], key: str = "state_dict"
) -> None:
    """Write tensors and metadata to a `.pth` or `.safetensors` file; an error leaves no partial file.

    Args:
        meta: metadata; the format version is added.
        key: key of the tensors in a `.pth`; the authors' code reads "model".

    Raises:
        CheckpointError: for any other file name extension.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {**meta, "format_version": FORMAT_VERSION}
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    with replacing(path) as partial:
        if path.suffix == ".safetensors":
            save_file(state, partial, {key: str(value) for key, value in meta.items()})
        elif path.suffix == ".pth":
            torch.save({key: state, "meta": meta}, partial)
        else:
            raise CheckpointError(f"{path}: give a file name that ends in .pth or .safetensors")
