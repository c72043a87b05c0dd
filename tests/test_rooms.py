"""Imports between the rooms (docs/architecture.md) go one way and form no cycles; import chains and files stay short.

`python -m tests.test_rooms` prints the figures; the floors of a folder are the files of its longest import chain.
"""

import ast
import functools
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FOLDERS = {"arm_backbone": "arm_backbone", "arm_images": "arm_images", "pretrain": "arm_pretrain"}
FOLDERS |= {"arm_toolkit": "arm_toolkit"}

# From the bottom up: packages import from earlier lines only. A module belongs to the longest name that matches.
FLOORS = (
    ("arm_backbone.ops.layout", "arm_backbone.ops.library", "arm_backbone.ops.scan_inputs"),
    (*(f"arm_backbone.ops.{name}" for name in ("cpu", "pytorch", "triton", "reference", "program", "mamba_ssm")),),
    ("arm_backbone.ops",),
    ("arm_backbone", "arm_images"),
    ("arm_pretrain",),
    ("arm_toolkit",),  # errors, machine, tables
    ("arm_toolkit.datasets", "arm_toolkit.models"),
    ("arm_toolkit.engine", "arm_toolkit.evaluation"),
    ("arm_toolkit.inference",),
    ("arm_toolkit.analysis",),
    ("arm_toolkit.benchmark", "arm_toolkit.experiments"),
    ("arm_toolkit.openmmlab",),
)
BACK_ENDS = FLOORS[1]

# Third-party packages that a room may import; the toolkit may import any. Optional ones are imported where they are
# used, and only if they are installed.
BASE = {"torch", "timm", "numpy", "safetensors"}
OUTSIDE = {
    "arm_backbone": BASE | {"triton", "mamba_ssm", "causal_conv1d"},
    "arm_images": {"numpy", "PIL", "cv2", "datasets"},
    "arm_pretrain": BASE | {"torchvision", "PIL", "mmengine"},
}
EXCEPTIONS = {"arm_backbone.openmmlab": {"mmengine"}, "arm_backbone.checkpoint.hub": {"huggingface_hub"}}

LIMITS = {"circles": 0, "imports upwards": 0, "floors of arm_backbone": 11, "floors of arm_backbone/ops": 6}
LIMITS |= {"lines of the longest file": 400}


# ---------------------------------------------------------------------------------------------------- reading


def modules() -> dict[str, Path]:
    """Importable name -> file of every module of the rooms (configurations are not imported)."""
    found = {}
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *file.relative_to(ROOT / folder).with_suffix("").parts]
            if "configs" not in parts:
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(source: str, package: str = "", known=frozenset(), by_name: bool = True) -> set[str]:
    """Modules that `source`, a module of `package`, imports anywhere, even inside functions.

    `from a import b` is an import of a.b if that is a `known` module. With `by_name`, `import_module("a.b")` counts.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute("." * node.level + (node.module or ""), package)
            names.update(name if (name := f"{base}.{alias.name}") in known else base for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and by_name:
            function = getattr(node.func, "attr", getattr(node.func, "id", None))
            if function in ("import_module", "__import__"):
                names.add(absolute(node.args[0].value, package))
    return names


def absolute(name: str, package: str) -> str:
    level = len(name) - len(name.lstrip("."))
    if not level:
        return name
    parents = package.split(".")[: len(package.split(".")) - level + 1]
    return ".".join([*parents, name[level:]]).rstrip(".")


def graph(by_name: bool = True) -> dict[str, set[str]]:
    """Module -> modules of the rooms that it imports."""
    files = modules()
    return {name: _imports_of(name, file, files, by_name) & files.keys() - {name} for name, file in files.items()}


def _imports_of(name: str, file: Path, files: dict[str, Path], by_name: bool = True) -> set[str]:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return imported(file.read_text(), package, files.keys(), by_name)


# --------------------------------------------------------------------------------------------------- judging


def home(module: str) -> str:
    """The package in FLOORS that a module belongs to."""
    homes = [package for line in FLOORS for package in line]
    return max((h for h in homes if f"{module}.".startswith(f"{h}.")), key=len)


def floor(package: str) -> int:
    return next(i for i, line in enumerate(FLOORS) if package in line)


def upward_imports(imports: dict[str, set[str]]) -> list[str]:
    """Imports of a higher floor, or of another package on the same floor; imports of a back end by modules of
    arm_backbone other than ops/dispatch.py and the back end's own."""
    wrong = []
    for module, targets in imports.items():
        for target in sorted(targets):
            ours, theirs = home(module), home(target)
            up = ours != theirs and floor(theirs) >= floor(ours)
            reaches = theirs in BACK_ENDS and ours != theirs and module.startswith("arm_backbone.")
            if up or (reaches and module != "arm_backbone.ops.dispatch"):
                wrong.append(f"{module} imports {target}")
    return wrong


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or not."""
    reached = {module: _reachable(module, imports) for module in imports}
    groups = {
        tuple(sorted(m for m in reached[module] if module in reached[m]))
        for module in imports
        if module in reached[module]
    }
    return [list(group) for group in sorted(groups)]


def _reachable(module: str, imports: dict[str, set[str]]) -> set[str]:
    found, left = set(), list(imports[module])
    while left:
        target = left.pop()
        if target not in found:
            found.add(target)
            left += imports[target]
    return found


def longest_chain(imports: dict[str, set[str]], package: str) -> list[str]:
    """The longest chain of imports within a package, from the top down."""
    inside = {m: {t for t in ts if _within(t, package)} for m, ts in imports.items() if _within(m, package)}
    chains: dict[str, list[str]] = {}

    def chain(module: str, above: tuple[str, ...]) -> list[str]:
        if module not in chains:
            below = [chain(t, (*above, module)) for t in sorted(inside[module]) if t not in above]
            chains[module] = [module, *max(below, key=len, default=[])]
        return chains[module]

    return max((chain(module, ()) for module in inside), key=len)


def _within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def longest_file() -> tuple[int, Path]:
    """Length and path of the longest Python or C++ file outside the tests."""
    folders = [*FOLDERS, "tools", "det_configs", "seg_configs", "cls_configs"]
    files = [f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in (".py", ".cpp", ".h")]
    return max((len(file.read_text().splitlines()), file.relative_to(ROOT)) for file in [*files, ROOT / "setup.py"])


@functools.cache
def figures() -> dict[str, tuple[int, str]]:
    """Each figure of LIMITS, with the modules or the file behind it."""
    everything, static = graph(), graph(by_name=False)
    groups, wrong = [" <-> ".join(group) for group in circles(everything)], upward_imports(everything)
    found = {"circles": (len(groups), "; ".join(groups)), "imports upwards": (len(wrong), "; ".join(wrong))}
    for folder in ("arm_backbone", "arm_backbone/ops"):
        chain = longest_chain(static, folder.replace("/", "."))
        found[f"floors of {folder}"] = len(chain), " > ".join(chain)
    lines, file = longest_file()
    return found | {"lines of the longest file": (lines, file.as_posix())}


# ----------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch.nn as nn, timm", {"torch.nn", "timm"}),
        ("from mmdet.models import FPN", {"mmdet.models"}),
        ("def f():\n    import mmengine", {"mmengine"}),
        ("from . import ops\nfrom .arm import ARM", {"arm_backbone.ops", "arm_backbone.arm"}),
        ("from ..other import x", {"other"}),
        ("importlib.import_module('mmseg.apis')", {"mmseg.apis"}),
        ("importlib.import_module('.openmmlab', __name__)", {"arm_backbone.openmmlab"}),
    ],
)
def test_imports_are_found(source, names):
    known = {"arm_backbone.ops", "arm_backbone.arm"}
    assert {name.lstrip(".") for name in imported(source, "arm_backbone", known)} == names


def test_wrong_directions_are_found():
    imports = {
        "arm_backbone.ops.scan": {"arm_backbone.ops.cpu.kernels"},
        "arm_backbone.ops.dispatch": {"arm_backbone.ops.cpu.kernels"},
        "arm_backbone.ops.cpu.kernels": {"arm_backbone.ops.layout", "arm_backbone.ops.dispatch"},
        "arm_backbone.arm": {"arm_backbone.ops.scan", "arm_pretrain.data"},
        "arm_toolkit.engine.runner": {"arm_toolkit.errors", "arm_toolkit.datasets.samplers", "arm_pretrain.data"},
        "arm_toolkit.datasets.shapes": {"arm_toolkit.engine.runner", "arm_toolkit.models.mixup"},
        "arm_toolkit.errors": {"arm_toolkit.analysis.features"},
    }
    assert upward_imports(imports) == [
        "arm_backbone.ops.scan imports arm_backbone.ops.cpu.kernels",
        "arm_backbone.ops.cpu.kernels imports arm_backbone.ops.dispatch",
        "arm_backbone.arm imports arm_pretrain.data",
        "arm_toolkit.datasets.shapes imports arm_toolkit.engine.runner",
        "arm_toolkit.datasets.shapes imports arm_toolkit.models.mixup",
        "arm_toolkit.errors imports arm_toolkit.analysis.features",
    ]


def test_circles_and_chains_are_found():
    imports = {"p": {"p.a"}, "p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a", "p.d"}, "p.d": set(), "q": {"p"}}
    assert circles(imports) == [["p.a", "p.b", "p.c"]]
    assert longest_chain(imports, "p") == ["p", "p.a", "p.b", "p.c", "p.d"]


@pytest.mark.parametrize("name", LIMITS)
def test_figure_is_within_its_limit(name):
    number, detail = figures()[name]
    assert number <= LIMITS[name], f"{name}: {number}, at most {LIMITS[name]}: {detail}"


@pytest.mark.parametrize("room", OUTSIDE)
def test_room_imports_only_the_packages_it_may(room):
    files = modules()
    wrong = []
    for module in (name for name in files if _within(name, room)):
        allowed = OUTSIDE[room] | EXCEPTIONS.get(module, set()) | sys.stdlib_module_names | set(FOLDERS.values())
        packages = {name.partition(".")[0] for name in _imports_of(module, files[module], files)}
        wrong += [f"{module} imports {package}" for package in sorted(packages - allowed)]
    assert not wrong, "\n".join(wrong)


if __name__ == "__main__":
    for name, (number, detail) in figures().items():
        print(f"{name}: {number} (at most {LIMITS[name]}){': ' + detail if detail else ''}")
