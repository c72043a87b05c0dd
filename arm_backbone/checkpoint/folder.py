"""The published folder as files: finds the weights in it, and verifies them by their SHA-256.

`config.json` is that of timm, of which timm reads its own keys; ours are in the dict `KEY`.
"""

import hashlib
import json
import os
from pathlib import Path

from .errors import CheckpointError, in_one_line

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KEY = "arm"  # of our dict in config.json
MAX_BYTES = 32 * 2**20  # of config.json
MAX_LINKS = 8  # one after the other


def read_config(folder: Path) -> dict:
    """The content of config.json.

    Raises:
        CheckpointError: if it cannot be read, is too large, or does not hold a JSON object.
    """
    file = contained(folder, CONFIG)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; a configuration has at most {MAX_BYTES}")
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); give a published folder") from None
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        detail = in_one_line(error)
        raise CheckpointError(f"{file} is not JSON ({detail}); download or publish the folder again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not an object; give a published folder")
    return content


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def contained(folder: Path, name: str) -> Path:
    """The path of a file in a folder.

    Raises:
        CheckpointError: if it is a symbolic link that leaves the folder. The hub's cache may link to its own files.
    """
    path, homes = folder / name, [folder.absolute()]
    if folder.absolute().parent.name == "snapshots":
        homes.append(folder.absolute().parents[1] / "blobs")
    step = path.absolute()
    for _ in range(MAX_LINKS):
        if not step.is_symlink() or step.parent == homes[-1] != homes[0]:
            return path  # what a file of the cache is, is the cache's affair
        step = Path(os.path.normpath(step.parent / os.readlink(step)))
        if not any(step.is_relative_to(home) for home in homes):
            raise CheckpointError(f"{path} is a link to {step}, outside of the folder; put the file itself there")
    raise CheckpointError(f"{path} is a link that leads nowhere; put the file itself there")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def verified_weights(folder: Path) -> Path:
    """The weights in a folder; their SHA-256 is compared if config.json states it.

    Raises:
        CheckpointError: if there are none, or they are not those of the configuration.
    """
    weights = contained(folder, WEIGHTS)
    if not weights.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}; give a published folder, or a .pth or .safetensors file")
    if not (folder / CONFIG).exists():
        return weights
    ours = read_config(folder).get(KEY)
    stated = ours.get("sha256") if isinstance(ours, dict) else None
    if stated is not None:
        found = sha256_of(weights)
        if found != stated:
            raise CheckpointError(
                f"{weights} is not the file that was published: its SHA-256 is {found[:12]}..., {CONFIG} states "
                f"{str(stated)[:12]}...; download the folder again"
            )
    return weights
