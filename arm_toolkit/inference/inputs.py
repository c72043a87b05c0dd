"""Finds the images and videos that a command line names, and gives each the name of its results.

Imports neither torch nor OpenMMLab, so that a wrong path ends a tool at once.
"""

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from arm_images.errors import DataError
from arm_images.find import EXTENSIONS, Found, image_files, survey

VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".gif"}


@dataclass(frozen=True)
class Input:
    """An image or a video.

    Attributes:
        path: the file.
        name: of its results, without an ending: the file's name, below the folder that was given; no two are equal.
        is_video: by the ending of its name.
    """

    path: Path
    name: str
    is_video: bool


def find_inputs(arguments: list[str], out: str | os.PathLike) -> list[Input]:
    """The images and videos of a command line, each once, in the order of the arguments.

    Args:
        arguments: files, folders (searched at any depth), patterns such as "photos/*.jpg", and text files (.txt) with
            one path per line.
        out: the folder of the results.

    Raises:
        DataError: for what does not exist or holds no image, and if `out` is a folder that images are read from.
    """
    files: dict[str, tuple[Path, Path]] = {}  # by absolute path: the file, and what names its results
    for argument in arguments:
        for file, relative in _expand(argument):
            files.setdefault(os.path.abspath(file), (file, relative))
    _keep_apart(arguments, [file for file, _ in files.values()], Path(out))
    used: set[str] = set()
    return [
        Input(file, _free(relative.with_suffix("").as_posix(), used), file.suffix.lower() in VIDEOS)
        for file, relative in files.values()
    ]


def _expand(argument: str) -> list[tuple[Path, Path]]:
    """The files that an argument names, each with the path that names its results."""
    path = Path(argument)
    if path.is_dir():
        found = Found(path)
        found.files += image_files(path, found, extensions=EXTENSIONS | VIDEOS)
        if not found.files:
            raise DataError(f"no images or videos under {path}{found.remainder()}")
        if found.left_out:
            found.log()
        return [(file, file.relative_to(path)) for file in found.files]
    if path.suffix.lower() == ".txt" and path.is_file():
        return [(file, Path(file.name)) for file in survey(path).files]
    if path.is_file():
        return [(path, Path(path.name))]
    if os.path.lexists(path):
        raise DataError(f"{path} is neither a file nor a folder (a pipe, a device or a broken link); give an image")
    if glob.has_magic(argument):
        files = [Path(name) for name in sorted(glob.glob(argument, recursive=True)) if os.path.isfile(name)]
        files = [file for file in files if file.suffix.lower() in EXTENSIONS | VIDEOS]
        if files:
            return [(file, Path(file.name)) for file in files]
        raise DataError(f"{argument} matches no image or video; correct the pattern (in quotes)")
    raise DataError(f"{path} does not exist; give images, folders, patterns or videos")


def _keep_apart(arguments: list[str], files: list[Path], out: Path) -> None:
    """Refuse to write among the inputs, where the next run would read the results as images."""
    folder = out.resolve()
    read = [Path(argument).resolve() for argument in arguments if Path(argument).is_dir()]
    inside = next((given for given in read if given == folder or given in folder.parents), None)
    if inside is None and folder in {file.parent.resolve() for file in files}:
        inside = folder
    if inside is not None:
        raise DataError(f"--out {out} is in {inside}, from which images are read; give a folder outside of it")


def _free(name: str, used: set[str]) -> str:
    """The name, or the first of name_2, name_3, ... that is free; some file systems take A and a for one name."""
    free, number = name, 1
    while free.casefold() in used:
        number += 1
        free = f"{name}_{number}"
    used.add(free.casefold())
    return free
