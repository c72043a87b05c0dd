"""tools/install.sh refuses what it must not touch; what it installs is tried by every run of tools/run_tests.sh."""

import site
import subprocess
import sys

import pytest

from tests.helpers.tools import run_tool


def test_arguments():
    done = run_tool("install.sh", "--help")
    assert done.returncode == 0 and "--mmcv-ops" in done.stdout and "--mamba-ssm" in done.stdout
    done = run_tool("install.sh", "--mmcv")
    assert (done.returncode, done.stderr) == (1, "install: error: unknown argument '--mmcv' (see --help)\n")


@pytest.mark.slow
def test_upstream_packages_are_not_overwritten(tmp_path):
    """An environment with upstream's mmcv and, so that nothing else is missing, the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    packages = next((tmp_path / "venv/lib").glob("python*")) / "site-packages"
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    info = packages / "mmcv-2.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmcv\nVersion: 2.1.0\n")
    (info / "RECORD").write_text("")
    env = dict(VIRTUAL_ENV=str(tmp_path / "venv"), XDG_CACHE_HOME=str(tmp_path / "cache"))
    done = run_tool("install.sh", env=env)
    assert done.returncode == 1
    assert "holds packages of upstream OpenMMLab (mmcv==2.1.0)" in done.stderr
    assert done.stderr.endswith("remove them first: pip uninstall mmcv\n")
    assert sorted(path.name for path in packages.iterdir()) == ["mmcv-2.1.0.dist-info", "others.pth"]
