"""Packaging. Versions are locked in tools/versions.txt, and nowhere else."""

import platform
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

here = Path(__file__).parent

# The CPU kernels: one source, compiled for each instruction set; the set is chosen at run time
CSRC = "arm_backbone/ops/cpu/csrc"
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = ["-O3", "-g0", "-std=c++17", "-fPIC", "-ffp-contract=fast", "-Wno-psabi"]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
INSTRUCTION_SETS = {"plain": [], **({"avx2": ["-mavx2", "-mfma"], "avx512": AVX512} if IS_X86 else {})}


class BuildKernels(build_ext):
    """Builds libarm_cpu.so, a plain C library; if that fails, the model runs on PyTorch's own operators."""

    def get_ext_filename(self, name: str) -> str:
        return f"{name.replace('.', '/')}.so"  # no Python version in the name: it is not a Python module

    def build_extension(self, extension: Extension) -> None:
        target = self.get_ext_fullpath(extension.name)
        Path(target).unlink(missing_ok=True)  # a failed build must not leave an older library
        build = Path(self.build_temp)
        macros = ["-DARM_X86"] if IS_X86 else []
        objects = self.compiler.compile([f"{CSRC}/interface.cpp"], str(build), extra_postargs=FLAGS + macros)
        for name, flags in INSTRUCTION_SETS.items():
            objects += self.compiler.compile([f"{CSRC}/kernels.cpp"], str(build / name), extra_postargs=FLAGS + flags)
        self.compiler.link_shared_object(objects, target, target_lang="c++", extra_postargs=["-pthread", "-s"])


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
        "arm_toolkit": ["experiments/*.j2"],
    },
    ext_modules=[Extension("arm_backbone.ops.cpu.libarm_cpu", [f"{CSRC}/kernels.cpp"], optional=True)],
    cmdclass={"build_ext": BuildKernels},
    # Only what a timm user needs. Lower bounds only, because a library that pins torch fits into hardly any
    # environment; tested with the versions in tools/versions.txt.
    install_requires=["torch>=2.6", "timm>=1.0.20", "numpy>=1.26", "safetensors>=0.4.3"],
    extras_require={
        # These need torch installed first and no build isolation, as in tools/install.sh
        "openmmlab": pins("openmmlab"),
        "cuda": pins("cuda"),
        "export": pins("export"),
        "data": pins("data"),
        "dev": pins("dev"),
    },
)
