"""Copies the torchvision operators into an mmcv that was installed without compiled ones."""

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
from pathlib import Path

from arm_backbone.checkpoint.writing import replacing

from ..errors import ConfigError, one_line

SOURCE = Path(__file__).with_name("_ext.py")


def install() -> str:
    """Write mmcv/_ext.py, unless mmcv has compiled operators, which are used and left alone.

    Returns:
        what was done or found, in one line.

    Raises:
        ConfigError: if there is no mmcv with operators, or if its compiled ones do not load.
        WriteError: if the file cannot be written.
    """
    folder = _mmcv_folder()
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        compiled = folder / f"_ext{suffix}"
        if compiled.exists():
            _check_that_it_loads(compiled)
            return f"{compiled}: mmcv's own compiled operators are used"
    target = folder / "_ext.py"
    if not target.is_file() or target.read_bytes() != SOURCE.read_bytes():
        with replacing(target) as partial:
            partial.write_bytes(SOURCE.read_bytes())
    _let_pip_remove(target)
    return f"{target}: NMS and RoIAlign are computed by torchvision"


def _mmcv_folder() -> Path:
    spec = importlib.util.find_spec("mmcv")  # does not import it
    if spec is None or spec.origin is None:
        raise ConfigError("mmcv is not installed; install it: pip install onedl-mmcv, or everything: tools/install.sh")
    folder = Path(spec.origin).parent
    if not (folder / "ops").is_dir():
        raise ConfigError(f"{folder} has no operators at all (mmcv-lite); install onedl-mmcv in its place")
    return folder


def _check_that_it_loads(compiled: Path) -> None:
    try:
        importlib.import_module("torch")  # whose libraries the module needs
        importlib.import_module("mmcv._ext")
    except ImportError as error:  # compiled for another torch ("undefined symbol")
        raise ConfigError(
            f"{compiled} does not load ({one_line(error)}); remove it and run this again, or compile it "
            "for this torch: bash tools/install.sh --mmcv-ops"
        ) from error


def _let_pip_remove(target: Path) -> None:
    """Add the file to pip's record of mmcv's files, so that uninstalling mmcv removes it too."""
    entry = f"{target.parent.name}/{target.name},,"
    for name in set(importlib.metadata.packages_distributions().get("mmcv", ())):
        for file in importlib.metadata.files(name) or ():
            record = Path(file.locate())
            if record.name == "RECORD" and record.parent.parent == target.parent.parent:
                lines = record.read_text().splitlines()
                if entry not in lines:
                    with replacing(record) as partial:
                        partial.write_text("\n".join([*lines, entry, ""]))
