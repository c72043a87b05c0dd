"""Finds the images of a folder, a list, tar archives or a Hugging Face data set, and says what it leaves out."""

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .absent import similar_file
from .archives import DatasetRow, TarMember, dataset_rows, is_dataset, tar_members
from .errors import DataError, printable
from .lists import read_list
from .walk import Identity, walk

logger = logging.getLogger("arm_images")

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
EXPECTED = f"files ending in {', '.join(sorted(EXTENSIONS))}"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")

ImageFile = Path | TarMember | DatasetRow


@dataclass
class Found:
    """What a source of images holds.

    Attributes:
        source: the folder, archive, data set or list.
        files: the images.
        left_out: the files that are not used, by reason.
    """

    source: Path
    files: list[ImageFile] = field(default_factory=list)
    left_out: dict[str, list] = field(default_factory=dict)

    def leave_out(self, reason: str, file: object) -> None:
        self.left_out.setdefault(reason, []).append(file)

    def log(self) -> None:
        """Say in one line what is used and what is left out."""
        logger.log(logging.WARNING if self.left_out else logging.INFO, str(self))

    def __str__(self) -> str:
        kinds = Counter(Path(_name(file)).suffix.lower() for file in self.files)
        used = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common() if kind)
        return printable(
            f"{self.source}: {len(self.files)} images used{f' ({used})' if used else ''}{self.remainder()}"
        )

    def remainder(self) -> str:
        """What is left out, to follow another sentence; empty if nothing is."""
        return "".join(f"; left out {len(files)} {why}, first {files[0]}" for why, files in self.left_out.items())


def find_images(path: str | os.PathLike, prefix: str | os.PathLike | None = None) -> list[ImageFile]:
    """Find all images under a path, and log in one line what is used and what is left out.

    Args:
        path: one of

            * a folder with images or .tar archives at any depth, links included (a flat folder, ImageNet's class
              folders, shards),
            * a .tar archive,
            * a folder that Hugging Face `datasets` wrote with `save_to_disk`,
            * a text file in UTF-8 with one path per line.
        prefix: folder that the lines of a text file are relative to; the text file's own folder if None.

    Returns:
        the images of a folder, sorted by path, and then those of its archives; otherwise the images in the order of the
        archive, data set or list.

    Raises:
        DataError: if the path or a listed file does not exist, if there are no images, or if a list, an archive or a
            data set cannot be read.
    """
    found = survey(path, prefix)
    if not found.files:
        raise DataError(f"no images under {path}: expected {EXPECTED}{found.remainder()}")
    found.log()
    return found.files


def survey(path: str | os.PathLike, prefix: str | os.PathLike | None = None) -> Found:
    """What `find_images` finds and leaves out; no images are not an error."""
    found = Found(Path(path))
    root = found.source
    if is_dataset(root):
        found.files += dataset_rows(root)
    elif root.is_dir():
        _survey_folder(found)
    elif not root.exists():
        raise DataError(
            f"{path} does not exist; give a folder of images or .tar archives, or a text file with one path per line"
        )
    elif not root.is_file():
        raise DataError(f"{path} is neither a folder nor a regular file; give a folder or a list of images")
    elif root.suffix.lower() == ".tar":
        _add_archive(found, root)
    else:
        found.files += _listed(root, root.parent if prefix is None else Path(prefix))
    return found


def image_files(
    folder: Path,
    found: Found,
    archives: list[Path] | None = None,
    suffix: str | None = None,
    entered: set[Identity] | None = None,
    extensions: Collection[str] = EXTENSIONS,
) -> list[Path]:
    """The image files under a folder at any depth, sorted.

    Args:
        found: what is left out is added to it.
        archives: .tar archives are added to it; None leaves them out.
        suffix: names must end in it; None takes `extensions`, in capital or small letters.
        entered: see `walk`.
        extensions: endings of the names, in small letters.
    """
    files = []
    for path in _files(folder, entered):
        if not path.is_file():
            found.leave_out("that are not regular files (broken links, pipes)", path)
        elif is_note_of_macos(path):
            found.leave_out("notes of macOS (._NAME)", path)
        elif any(part.startswith(".") for part in path.relative_to(folder).parts):
            found.leave_out("hidden files", path)
        elif path.name.endswith(suffix) if suffix else path.suffix.lower() in extensions:
            files.append(path)
        elif archives is not None and path.suffix.lower() == ".tar":
            archives.append(path)
        elif path.name.lower().endswith(COMPRESSED):
            found.leave_out("compressed archives (unpack them)", path)
        else:
            found.leave_out(f"other files ({path.suffix or 'no ending'})", path)
    return files


def is_note_of_macos(path: Path) -> bool:
    """Whether macOS keeps its own data in this file or folder: `._NAME`, or `__MACOSX` of unpacked archives."""
    return path.name.startswith("._") or path.name == "__MACOSX"


def _files(folder: Path, entered: set[Identity] | None) -> Iterator[Path]:
    try:
        yield from sorted(walk(folder, entered))
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be listed ({error.strerror}); change its permissions or remove it"
        ) from None


def _survey_folder(found: Found) -> None:
    archives: list[Path] = []
    found.files += image_files(found.source, found, archives)
    for archive in archives:
        before = len(found.files)
        _add_archive(found, archive)
        if len(found.files) == before:
            found.leave_out("archives without images", archive)


def _add_archive(found: Found, archive: Path) -> None:
    links: list[str] = []
    for member in tar_members(archive, links):
        suffix = Path(member.name).suffix
        if suffix.lower() not in EXTENSIONS:
            found.leave_out(f"other files of archives ({suffix or 'no ending'})", member)
        elif Path(member.name).name.startswith("._"):
            found.leave_out("notes of macOS (._NAME)", member)
        else:
            found.files.append(member)
    for link in links:
        found.leave_out("links and other special files of archives (recreate with tar --dereference)", link)


def _listed(list_file: Path, folder: Path) -> list[Path]:
    files = [folder / line for line in read_list(list_file)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{list_file} lists {len(missing)} files that do not exist, first {missing[0]}{_hint(missing[0])}; set "
            "prefix to the folder that the lines are relative to"
        )
    return files


def _hint(missing: Path) -> str:
    """What may be wrong with a line of a list."""
    start = re.split(r"[ \t,;]+[^ \t,;]+$", str(missing))[0]
    if start != str(missing) and Path(start).is_file():
        return f" ({start} is there: a line holds one path and nothing else, no label)"
    similar = similar_file(str(missing))
    return f" ({similar} is there: correct the list)" if similar else ""


def _name(file: ImageFile) -> str:
    return file.name if isinstance(file, Path | TarMember) else ""
