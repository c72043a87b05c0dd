"""Images inside larger files: tar archives and Hugging Face data sets.

Both are read without unpacking them, with random access to their images.
"""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DataError


@dataclass(frozen=True)
class TarMember:
    """A file in an uncompressed tar archive.

    Attributes:
        offset, size: position and number of its bytes in the archive.
        name: its path in the archive.
    """

    archive: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def open(self) -> io.BytesIO:
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))


def tar_members(archive: Path, links: list[str] | None = None) -> list[TarMember]:
    """The files of a tar archive, such as a webdataset shard, in the archive's order.

    Args:
        links: the names of links, sparse files and devices, which are not read, are added to it.

    Raises:
        DataError: if the archive is compressed, is not a tar archive, or is not complete.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            members = []
            for member in tar:
                if member.isreg() and not member.issparse():
                    members.append(TarMember(archive, member.offset_data, member.size, member.name))
                elif links is not None and not member.isdir():
                    links.append(f"{archive}/{member.name}")
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{archive} is not an uncompressed tar archive ({error}); recreate it with tar -cf") from None
    if not _ends_at(archive, end):
        raise DataError(
            f"{archive} is damaged at byte {end}, after {len(members)} files: it is cut off, or more follows its end; "
            "fetch it again, or recreate it with tar -cf"
        )
    return members


def _ends_at(archive: Path, end: int) -> bool:
    """Whether nothing but zeros, at least one block of them, follows a position. `tarfile` does not look."""
    with archive.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        whole = len(block) == tarfile.BLOCKSIZE
        while block and not block.strip(b"\0"):
            block = file.read(2**20)
        return whole and not block


@dataclass(frozen=True)
class DatasetRow:
    """A row of a Hugging Face data set whose only column holds encoded images."""

    folder: Path
    dataset: Any
    index: int

    def __str__(self) -> str:
        return f"{self.folder}, row {self.index}"

    def open(self) -> io.BytesIO:
        (image,) = self.dataset[self.index].values()
        if image is None:
            raise ValueError("no image")
        return io.BytesIO(image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes())


def is_dataset(folder: Path) -> bool:
    """Whether `datasets.Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def dataset_rows(folder: Path) -> list[DatasetRow]:
    """The images of a Hugging Face data set, which stays memory-mapped; its images stay encoded.

    Args:
        folder: written by `save_to_disk`.

    Raises:
        DataError: if the package `datasets` is not installed, or if the data set has splits or does not have exactly
            one column of images.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"{folder} is a Hugging Face data set; pip install datasets to read it") from None
    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as error:  # noqa: BLE001 damaged files raise anything
        reason = str(error).split("\n")[0]
        raise DataError(f"{folder} is a damaged Hugging Face data set ({reason}); save it again") from None
    if isinstance(dataset, datasets.DatasetDict):
        splits = list(dataset)
        raise DataError(f"{folder} has the splits {', '.join(splits)}; give one of them: {folder / splits[0]}")
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 1:
        raise DataError(
            f"{folder} has {len(columns)} columns of images among {', '.join(dataset.features)}; save it with one: "
            "dataset.select_columns(NAME).save_to_disk(FOLDER)"
        )
    dataset = dataset.select_columns(columns).cast_column(columns[0], datasets.Image(decode=False))
    return [DatasetRow(folder, dataset, index) for index in range(len(dataset))]
