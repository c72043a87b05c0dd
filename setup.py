"""Packaging. Versions are locked in tools/versions.txt, and nowhere else.

The CPU kernels are compiled with the system's C++ compiler or, where there is none, with ziglang, a compiler from PyPI
that pip gets for the build alone. With ARM_ZIG=1 ziglang compiles them in any case: the library, and therefore the
wheel, then serves every Linux with glibc 2.17 or later.
"""

import os
import platform
import shlex
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

here = Path(__file__).parent

# The CPU kernels: one source, compiled for each instruction set; the set is chosen at run time
CSRC = "arm_backbone/ops/cpu/csrc"
MACHINE = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
IS_X86 = MACHINE == "x86_64"
FLAGS = ["-O3", "-g0", "-std=c++17", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi"]
FLAGS += ["-fno-exceptions", "-fno-rtti"]  # these would need a C++ runtime
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
INSTRUCTION_SETS = {"plain": [], **({"avx2": ["-mavx2", "-mfma"], "avx512": AVX512} if IS_X86 else {})}


def uses_zig() -> bool:
    """Whether ziglang compiles the kernels."""
    if sys.platform != "linux" or MACHINE not in ("x86_64", "aarch64"):
        return False
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return os.environ.get("ARM_ZIG") == "1" or shutil.which(shlex.split(compiler)[0]) is None


def zig_flags(flags: list[str]) -> list[str]:
    """The flags of an instruction set for ziglang.

    It compiles for the processor that it runs on unless -mcpu names one, to which it expects instructions to be added.
    """
    added = [f"+{flag[2:]}" for flag in flags if "=" not in flag]
    return [f"-mcpu={'x86_64' if IS_X86 else 'generic'}{''.join(added)}", *(flag for flag in flags if "=" in flag)]


class BuildKernels(build_ext):
    """Builds libarm_cpu.so, a plain C library; if that fails, the model runs on PyTorch's own operators."""

    def get_ext_filename(self, name: str) -> str:
        return f"{name.replace('.', '/')}.so"  # no Python version in the name: it is not a Python module

    def build_extension(self, extension: Extension) -> None:
        target = self.get_ext_fullpath(extension.name)
        Path(target).unlink(missing_ok=True)  # a failed build must not leave an older library
        zig = uses_zig()
        if zig:
            self._use_zig()
        adapted = zig_flags if zig else list
        units = {"interface": ["-DARM_X86"] if IS_X86 else []} | dict.fromkeys(INSTRUCTION_SETS, [])

        def compiled(name: str) -> list[str]:
            source = f"{CSRC}/{'interface' if name == 'interface' else 'kernels'}.cpp"
            flags = FLAGS + units[name] + adapted(INSTRUCTION_SETS.get(name, []))
            return self.compiler.compile([source], str(Path(self.build_temp) / name), extra_postargs=flags)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = sum(pool.map(compiled, units), [])
        # without ziglang's own runtime: it would first be compiled, for 20 seconds
        libraries = ["-nostdlib", "-lc"] if zig else []
        self.compiler.link_shared_object(
            objects, target, target_lang=None if zig else "c++", extra_postargs=["-pthread", "-s", *libraries]
        )

    def _use_zig(self) -> None:
        for kind in ("GLOBAL", "LOCAL"):  # not in the home folder
            os.environ[f"ZIG_{kind}_CACHE_DIR"] = str(Path(self.build_temp).resolve() / "zig")
        target = ["-target", f"{MACHINE}-linux-gnu.2.17"]
        for name in ("compiler_so", "compiler_so_cxx"):
            self.compiler.set_executable(name, [sys.executable, "-m", "ziglang", "c++", *target])
        self.compiler.set_executable("linker_so", [sys.executable, "-m", "ziglang", "cc", *target, "-shared"])


class KernelWheel(bdist_wheel):
    """Names the wheel after what its library needs: no version of Python and, made by ziglang, glibc 2.17."""

    def get_tag(self) -> tuple[str, str, str]:
        system = super().get_tag()[2]
        return "py3", "none", f"manylinux_2_17_{MACHINE}" if uses_zig() else system


def pins(section: str) -> list[str]:
    """The requirements under `# [section]` in tools/versions.txt."""
    found, current = [], None
    for line in (here / "tools" / "versions.txt").read_text().splitlines():
        if line.startswith("# ["):
            current = line[3 : line.index("]")]
        elif current == section and line and not line.startswith("#"):
            found.append(line)
    if not found:
        raise ValueError(f"tools/versions.txt has no section [{section}]")
    return found


# pretrain/ is imported as arm_pretrain, because tools/pretrain.py would shadow a package called pretrain
pretrain = find_packages("pretrain")
if (here / "pretrain" / "__init__.py").exists():
    pretrain = ["arm_pretrain", *(f"arm_pretrain.{name}" for name in pretrain)]

readme = here / "README.md"

setup(
    name="arm-backbone",
    version="0.1.0",
    description="The ARM vision backbone: pretraining, detection, segmentation",
    long_description=readme.read_text() if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["arm_*"]) + pretrain,
    package_dir={"arm_pretrain": "pretrain"},
    package_data={
        "arm_backbone": ["ops/cpu/csrc/*"],
        # configurations are data, because their folders are not packages (no __init__.py)
        "arm_pretrain": ["configs/**/*.py"],
        "arm_toolkit": ["experiments/*.j2", "experiments/*.json"],
    },
    ext_modules=[Extension("arm_backbone.ops.cpu.libarm_cpu", [f"{CSRC}/kernels.cpp"], optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": KernelWheel},
    setup_requires=pins("compiler") if uses_zig() else [],  # pip gets it for the build, see the top
    # Only what a timm user needs. Lower bounds only, because a library that pins torch fits into hardly any
    # environment; tested with the versions in tools/versions.txt.
    install_requires=["torch>=2.7", "timm>=1.0.26", "numpy>=1.26", "safetensors>=0.4.3"],
    extras_require={
        # These need torch installed first and no build isolation, as in tools/install.sh
        "openmmlab": pins("openmmlab"),
        "cuda": pins("cuda"),
        "export": pins("export"),
        "data": pins("data"),
        "dev": pins("dev"),
    },
)
