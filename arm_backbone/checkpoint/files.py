"""Reads checkpoint files without running code from them, and writes them.

A checkpoint file is a training checkpoint of this toolkit (`state_dict` and `meta`) or of the authors (`model`, `args`,
perhaps `model_ema`), a converted `.pth`, or a `.safetensors` file.
"""

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .accounting import shorten
from .errors import CheckpointError
from .folder import WEIGHTS, verified_weights
from .hub import is_hub_name, local_path
from .writing import replacing, uninterrupted

FORMAT_VERSION = 1


def read_checkpoint(path: str | os.PathLike, trust: bool = False, mmap: bool = False) -> dict:
    """Load a checkpoint file without running code from it.

    The file may hold tensors, numbers, strings, containers and argparse.Namespace.

    Args:
        path: `.pth` (or any other PyTorch file) or `.safetensors`, a published folder, or the name of one of these on
            the Hugging Face hub (see `arm_backbone.checkpoint.hub`).
        trust: unpickle any object, which can run code. Only for files whose origin you know.
        mmap: leave the tensors of a `.pth` in the file where its format allows that; for a look at the rest.

    Returns:
        the contents of the file; for safetensors a dict with `state_dict` and `meta`.

    Raises:
        CheckpointError: for a missing, broken or unsafe file, or one that does not hold a dict.
    """
    path = find_file(path)
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty; download or save it again")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    options = dict(map_location="cpu", mmap=mmap and zipfile.is_zipfile(path))
    try:
        if trust:
            checkpoint = torch.load(path, **options, weights_only=False)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                checkpoint = torch.load(path, **options, weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # not even a pickle
            raise CheckpointError(f"{path} is not a PyTorch checkpoint; download or save it again") from None
        reason = re.search(r"(?:GLOBAL|Unsupported (?:global|class|operand)\S*) (?!GLOBAL )(\S+)", str(error))
        what = reason[1] if reason else "an object"
        raise CheckpointError(
            f"{path} holds {what}, which can execute code when it is loaded; if you know where the file comes from, "
            "convert it with tools/convert_checkpoint.py --trust"
        ) from None
    except Exception as error:  # noqa: BLE001 a broken pickle can raise anything
        raise _incomplete(path, "PyTorch checkpoint", error) from None
    if not mmap:
        _check_sums(path)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a dict of tensors; save a state_dict")
    if not checkpoint:
        raise CheckpointError(f"{path} holds an empty dict; save a state_dict")
    return checkpoint


def _check_sums(path: Path) -> None:
    """Compare every part of a `.pth` with the CRC-32 that torch.save stores beside it; torch.load does not.

    Raises:
        CheckpointError: naming the damaged part.
    """
    if zipfile.is_zipfile(path):  # the format before torch 1.6 has no checksums
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise CheckpointError(
                f"{path} is damaged: {damaged} does not match its checksum; download or copy it again"
            )


def is_whole(path: str | os.PathLike) -> bool:
    """Whether a `.pth` file is complete and every part matches its checksum; reads the whole file."""
    try:
        read_checkpoint(path, mmap=True)
        _check_sums(Path(path))
    except (CheckpointError, OSError):
        return False
    return True


def _read_safetensors(path: Path) -> dict:
    try:
        with safe_open(path, "pt") as file:
            meta = dict(file.metadata() or {})
            return {"state_dict": {key: file.get_tensor(key) for key in file.keys()}, "meta": meta}  # noqa: SIM118
    except Exception as error:  # noqa: BLE001 an unknown number format raises a KeyError or AttributeError
        raise _incomplete(path, "safetensors file", error) from None


def _incomplete(path: Path, kind: str, error: Exception) -> CheckpointError:
    if isinstance(error, OSError) and error.strerror:
        return CheckpointError(f"{path} cannot be read ({error.strerror}); check the file and its permissions")
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CheckpointError(f"{path} is not a complete {kind} ({detail}); download or save it again")


def find_file(path: str | os.PathLike) -> Path:
    """The file on this machine that `read_checkpoint` reads: of a name on the hub what was downloaded, of a published
    folder its weights.

    Raises:
        CheckpointError: if it does not exist, cannot be downloaded, or the weights are not those that were published.
    """
    found = local_path(path)
    if os.path.isdir(found) and (is_hub_name(path) or os.path.lexists(os.path.join(found, WEIGHTS))):
        return verified_weights(Path(found))
    require_file(found)
    return Path(found)


def require_file(path: str | os.PathLike) -> None:
    """Raise a CheckpointError with a remedy unless the path is a file that can be read."""
    if re.match(r"\w+://", os.fspath(path)):
        raise CheckpointError(f"{path} is an address; download the file and give its path")
    path = Path(path)
    if path.is_file():
        if not os.access(path, os.R_OK):
            raise CheckpointError(f"{path} cannot be read (no permission); change its permissions or its owner")
        return
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder without {WEIGHTS}; give the .pth or .safetensors file in it")
    if path.exists():
        raise CheckpointError(f"{path} is a pipe or a device, not a file; copy its contents into a file")
    remedy = "give the path of an existing .pth or .safetensors file"
    if path.name.endswith("_pretrain.pth"):
        remedy = f"make it with: python tools/convert_checkpoint.py PRETRAINING_CHECKPOINT {path} --to backbone"
    raise CheckpointError(f"{path} does not exist; {remedy}")


def model_state(checkpoint: dict, ema: bool = False, where: str | os.PathLike = "the checkpoint") -> dict[str, Tensor]:
    """The tensors of the model in a checkpoint, from its key `state_dict` or `model`, or from the dict itself.

    Args:
        ema: take the moving average of the weights. The authors' files hold it in `model_ema`. Ours hold it in
            `state_dict`, because evaluation uses it, and the plain weights in `ema_state_dict`.
        where: name of the file, for messages.

    Raises:
        CheckpointError: if the checkpoint does not hold these tensors, or one of them holds no plain numbers.
    """
    if ema and "ema_state_dict" not in checkpoint:
        if not isinstance(checkpoint.get("model_ema"), dict):
            raise CheckpointError(
                f"{where} has no EMA weights: no key model_ema or ema_state_dict among {shorten(list(checkpoint))}; "
                "omit --ema"
            )
        checkpoint = checkpoint["model_ema"]
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if not any(isinstance(value, Tensor) for value in checkpoint.values()):
        raise CheckpointError(
            f"{where} has no model weights: expected tensors, or a key state_dict or model; "
            f"found {shorten(list(checkpoint)) or 'nothing'}"
        )
    for name, value in checkpoint.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{where}: a tensor is named {name!r}, not by a string; save a state_dict")
        problem = _not_plain(value)
        if problem:
            raise CheckpointError(f"{where}: {name} {problem}; save a state_dict of ordinary tensors")
    return dict(checkpoint)


def _not_plain(value: object) -> str | None:
    """Why a value cannot be weights or a buffer; None if it can."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor"
    if value.is_meta:
        return "has no data (meta device)"
    if value.layout != torch.strided or value.is_quantized:
        return f"is sparse or quantized ({value.layout}, {value.dtype})"
    if value.is_complex():
        return f"holds complex numbers ({value.dtype})"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"of shape {tuple(value.shape)} repeats a smaller memory"
    return None


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Name the file in a CheckpointError that does not name it yet."""
    try:
        yield
    except CheckpointError as error:
        raise error if str(path) in str(error) else CheckpointError(f"{path}: {error}") from None


def write_checkpoint(
    path: str | os.PathLike, state: dict[str, Tensor], meta: dict[str, str | int], key: str = "state_dict"
) -> None:
    """Write tensors and metadata to a `.pth` or `.safetensors` file; an error leaves no partial file.

    Args:
        meta: metadata; the format version is added.
        key: key of the tensors in a `.pth`; the authors' code reads "model".

    Raises:
        CheckpointError: for any other file name extension.
        WriteError: if the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    meta = {**meta, "format_version": FORMAT_VERSION}
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    with uninterrupted(), replacing(path) as partial:
        if path.suffix == ".safetensors":
            save_file(state, partial, {key: str(value) for key, value in meta.items()})
        elif path.suffix == ".pth":
            torch.save({key: state, "meta": meta}, partial)
        else:
            raise CheckpointError(f"{path}: give a file name that ends in .pth or .safetensors")
