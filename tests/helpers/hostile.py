"""Files that would run a command when they are read by a careless program; the command makes a file, the canary."""

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Callable, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def _system(canary: Path) -> Call:
    return Call(os.system, f"touch {canary}")


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def _zipped(content: bytes) -> bytes:
    """A file as torch.save writes it, with another pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _tar(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"evil"))
    return buffer.getvalue()


def _objects(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([_system(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


# name of a file -> its content, given the path of the canary; none of them is a checkpoint
CHECKPOINTS: dict[str, Callable[[Path], bytes]] = {
    "system.pth": lambda canary: _pickled(_system(canary)),
    "system_in_zip.pth": lambda canary: _zipped(_pickled(_system(canary))),
    "beside_weights.pth": lambda canary: _saved(dict(state_dict=dict(a=torch.ones(1)), meta=_system(canary))),
    "as_a_weight.pth": lambda canary: _saved(dict(state_dict=dict(a=_system(canary)))),
    "as_a_name.pth": lambda canary: _saved(dict(model={_system(canary): torch.ones(1)})),
    "exec.pth": lambda canary: _pickled(Call(exec, f"open({str(canary)!r}, 'w')")),
    "eval.pth": lambda canary: _zipped(_pickled(Call(eval, f"open({str(canary)!r}, 'w')"))),
    "open.pth": lambda canary: _pickled(Call(open, str(canary), "w")),
    "pickle_in_pickle.pth": lambda canary: _pickled(Call(pickle.loads, _pickled(_system(canary)))),
    "torch_bytes.pth": lambda canary: _pickled(Call(torch.storage._load_from_bytes, _pickled(_system(canary)))),
    "torch_load.pth": lambda canary: _zipped(_pickled(Call(torch.load, str(canary)))),
    "numpy_objects.pth": _objects,
    "path_traversal.pth": lambda canary: _tar("storages", f"../../../../../../..{canary}", str(canary)),
    "pickle.safetensors": lambda canary: _pickled(_system(canary)),
    "zip.safetensors": lambda canary: _zipped(_pickled(_system(canary))),
    "header.safetensors": lambda canary: b"\xff" * 8 + _pickled(_system(canary)),
}


def write_data(folder: Path, canary: Path) -> dict[str, Path]:
    """Data sets that would run something: name -> path."""
    image = io.BytesIO()
    Image.fromarray(np.full((96, 96, 3), 90, np.uint8)).save(image, "png")

    def directory(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    script = directory("script")
    (script / "script.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (script / "__init__.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (script / "a.png").write_bytes(image.getvalue())
    saved = directory("saved")
    (saved / "saved.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (saved / "dataset_info.json").write_text(json.dumps(dict(builder_name="saved", features={})))
    (saved / "state.json").write_text(json.dumps(dict(_data_files=[dict(filename="../../etc/passwd")])))
    pickled = directory("pickled")
    (pickled / "a.png").write_bytes(CHECKPOINTS["system.pth"](canary))
    postscript = directory("postscript")  # Pillow gives these to Ghostscript
    (postscript / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n"
    )
    traversal = directory("traversal")
    (traversal / "a.tar").write_bytes(_tar(f"../../../../../../..{canary}", f"{canary}.png", "../a.png"))
    links = directory("links")
    with tarfile.open(links / "a.tar", "w") as archive:
        for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE), ("c.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    lines = folder / "list.txt"
    lines.write_text(f"$(touch {canary})\n`touch {canary}`\n| touch {canary}\n; touch {canary}\n")
    tagged = folder / "tagged.json"
    tagged.write_text(f"!!python/object/apply:os.system ['touch {canary}']\n")
    return dict(
        script=script, saved=saved, pickled=pickled, postscript=postscript, traversal=traversal, links=links,
        list=lines, tagged=tagged,
    )  # fmt: skip
