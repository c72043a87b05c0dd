"""Finds the images of a folder, a list, tar archives or a Hugging Face data set."""

import os
from pathlib import Path

from .archives import DatasetRow, TarMember, dataset_rows, is_dataset, tar_members
from .errors import DataError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}

ImageFile = Path | TarMember | DatasetRow


def find_images(path: str | os.PathLike, prefix: str | os.PathLike | None = None) -> list[ImageFile]:
    """Find all images under a path.

    Args:
        path: one of

            * a folder with images or .tar archives at any depth (a flat folder, ImageNet's class folders, shards),
            * a .tar archive,
            * a folder that Hugging Face `datasets` wrote with `save_to_disk`,
            * a text file with one path per line.
        prefix: folder that the lines of a text file are relative to; the text file's own folder if None.

    Returns:
        the images of a folder, sorted by path, and then those of its archives; otherwise the images in the order of the
        archive, data set or list.

    Raises:
        DataError: if the path or a listed file does not exist, if there are no images, or if an archive or a data set
            cannot be read.
    """
    root = Path(path)
    if is_dataset(root):
        files = dataset_rows(root)
    elif root.is_dir():
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS)
        files += [member for archive in sorted(root.rglob("*.tar")) for member in _images_of_tar(archive)]
    elif root.suffix == ".tar" and root.is_file():
        files = _images_of_tar(root)
    elif root.is_file():
        files = _listed(root, root.parent if prefix is None else Path(prefix))
    else:
        raise DataError(
            f"{path} does not exist; give a folder of images or .tar archives, or a text file with one path per line"
        )
    if not files:
        raise DataError(f"no images under {path}: expected files ending in {', '.join(sorted(EXTENSIONS))}")
    return files


def _images_of_tar(archive: Path) -> list[TarMember]:
    return [member for member in tar_members(archive) if Path(member.name).suffix.lower() in EXTENSIONS]


def _listed(list_file: Path, folder: Path) -> list[Path]:
    files = [folder / line.strip() for line in list_file.read_text().splitlines() if line.strip()]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{list_file} lists {len(missing)} files that do not exist, first {missing[0]}; set prefix to the folder "
            "that the lines are relative to"
        )
    return files
