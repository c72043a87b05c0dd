"""Finds image files: in folders, list files, tar archives and Hugging Face data sets."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class TarMember:
    """A file in an uncompressed tar archive, read by its place: any order, no unpacking."""

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


@dataclass(frozen=True)
class DatasetRow:
    """A row of a Hugging Face data set with one column, undecoded images."""

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


ImageFile = Path | TarMember | DatasetRow


def dataset_rows(folder: Path) -> list[DatasetRow]:
    """The images of a Hugging Face data set that `save_to_disk` wrote; they stay memory-mapped and encoded.

    Raises:
        ImportError: without the package `datasets`.
        ValueError: if it is a dictionary of splits, or does not have one column of images.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError(f"{folder} is a Hugging Face data set: pip install datasets") from None
    dataset = datasets.load_from_disk(str(folder))
    if isinstance(dataset, datasets.DatasetDict):
        raise ValueError(
            f"{folder} has the splits {', '.join(dataset)}; give one of them: {folder / next(iter(dataset))}"
        )
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 1:
        raise ValueError(
            f"{folder} has {len(columns)} columns of images among {', '.join(dataset.features)}; save it with one: "
            "dataset.select_columns(NAME).save_to_disk(FOLDER)"
        )
    dataset = dataset.select_columns(columns).cast_column(columns[0], datasets.Image(decode=False))
    return [DatasetRow(folder, dataset, index) for index in range(len(dataset))]


def tar_members(archive: Path) -> list[TarMember]:
    """The images of an archive (a shard as webdataset writes them, or any other).

    Raises:
        ValueError: if it is compressed, or no tar archive.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            return [
                TarMember(archive, member.offset_data, member.size, member.name)
                for member in tar
                if member.isfile() and Path(member.name).suffix.lower() in EXTENSIONS
            ]
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is no uncompressed tar archive ({error}); make it anew with tar -cf") from None


def find_images(path: str, prefix: str | None = None) -> list[ImageFile]:
    """Image files of a folder (at any depth: flat, or ImageNet's class folders), of a list file, in tar archives, or in
    a Hugging Face data set.

    Args:
        path: a folder with images or .tar archives in it, a folder that a data set was saved to, a .tar archive, or a
            text file with one path a line.
        prefix: folder that the lines of a list start from; the list's own when None.

    Raises:
        FileNotFoundError: if the path, or a file of a list, does not exist.
        ValueError: if there is no image, or a broken archive.
    """
    root = Path(path)
    if (root / "dataset_info.json").is_file() or (root / "dataset_dict.json").is_file():
        files = dataset_rows(root)
    elif root.is_dir():
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS)
        files += [member for archive in sorted(root.rglob("*.tar")) for member in tar_members(archive)]
    elif root.suffix == ".tar" and root.is_file():
        files = tar_members(root)
    elif root.is_file():
        start = Path(prefix) if prefix is not None else root.parent
        files = [start / line.strip() for line in root.read_text().splitlines() if line.strip()]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{path} lists {len(missing)} files that do not exist, first {missing[0]}; set prefix to the folder "
                "that the lines start from"
            )
    else:
        raise FileNotFoundError(
            f"data {path} does not exist; give a folder of images or .tar archives, or a text file with one path a line"
        )
    if not files:
        raise ValueError(f"no image ({', '.join(sorted(EXTENSIONS))}) under {path}")
    return files
