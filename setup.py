"""Packaging. Versions are locked in tools/versions.txt, and nowhere else."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent


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


# pretrain/ is imported as arm_pretrain: tools/pretrain.py would shadow a package called pretrain
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
        "": ["**/*.cpp", "**/*.cu", "**/*.h"],
        # configurations are no packages (no __init__.py), so they are data
        "arm_pretrain": ["configs/**/*.py"],
    },
    # What a timm user needs, and no more. Lower bounds only, as a library that pins torch fits into
    # nobody's environment; tested with the versions in tools/versions.txt.
    install_requires=["torch>=2.6", "timm>=1.0.20", "numpy>=1.26", "safetensors>=0.4.3"],
    extras_require={
        # These need torch installed first, and no build isolation: tools/install.sh does it so
        "openmmlab": pins("openmmlab"),
        "cuda": pins("cuda"),
        "dev": pins("dev"),
    },
)
