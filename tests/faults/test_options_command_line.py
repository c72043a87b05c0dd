"""Options, configurations and environment variables: what is typed is what is used, or one line says why not."""

import re
import socket
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.runs import CONFIGS, seg_config
from tests.helpers.tools import call_tool, run_tool

pytestmark = pytest.mark.xdist_group("options")


@pytest.fixture(scope="module")
def configs(shapes, tmp_path_factory) -> Path:
    """A folder with a configuration of each kind."""
    folder = tmp_path_factory.mktemp("configs")
    for kind, config in CONFIGS.items():
        config(shapes).dump(folder / f"{kind}.py")
    return folder


@pytest.fixture
def refused(configs, tmp_path, capsys, monkeypatch):
    """Runs a tool that must fail with status 2 and one line, and make nothing."""
    monkeypatch.chdir(tmp_path)

    def check(script: str, *arguments, says: list[str]) -> str:
        before = set(tmp_path.rglob("*"))
        capsys.readouterr()
        status = call_tool(script, *arguments)
        error = capsys.readouterr().err
        assert status == 2, error
        assert re.fullmatch(r"error: [^\n]+\n", error), error
        assert all(words in error for words in says), error
        assert set(tmp_path.rglob("*")) == before
        return error

    return check


ENVIRONMENT = {
    "scan back end": (dict(ARM_SCAN_BACKEND="foo"), [], ["ARM_SCAN_BACKEND='foo'", "give auto, reference"]),
    "scan back end of a GPU": (dict(ARM_SCAN_BACKEND="mamba_ssm"), [], ["ARM_SCAN_BACKEND='mamba_ssm'", "cannot run"]),
    "instruction set": (dict(ARM_CPU_ISA="foo"), [], ["ARM_CPU_ISA='foo'", "plain"]),
    "local rank": (dict(LOCAL_RANK="x"), [], ["LOCAL_RANK=x", "whole number"]),
    "negative local rank": (dict(LOCAL_RANK="-1"), [], ["LOCAL_RANK=-1", "whole number"]),
    "launcher alone": ({}, ["--launcher", "pytorch"], ["--launcher pytorch: LOCAL_RANK is not set", "dist_train.sh"]),
    "rank beyond the world": (
        dict(RANK="2", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511"),
        ["--launcher", "pytorch"],
        ["RANK=2", "0 to 1"],
    ),
    "port": (
        dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="99999"),
        ["--launcher", "pytorch"],
        ["MASTER_PORT=99999", "65535"],
    ),
}


@pytest.mark.parametrize("what", ENVIRONMENT)
def test_environment_variables_are_checked_before_anything_is_made(what, configs, refused, monkeypatch):
    """row_45"""
    variables, arguments, says = ENVIRONMENT[what]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused("train.py", configs / "seg.py", *arguments, says=says)


@pytest.mark.parametrize("name", ["ARM_SCAN_BACKEND", "ARM_CPU_ISA", "LOCAL_RANK"])
def test_an_empty_variable_counts_as_unset(name, shapes, tmp_path, monkeypatch):
    """row_45"""
    monkeypatch.setenv(name, "")
    seg_config(shapes, **{"train_cfg.max_iters": 1}).dump(tmp_path / "mine.py")
    assert call_tool("train.py", tmp_path / "mine.py", "--work-dir", tmp_path / "work") == 0


def test_a_taken_port_of_a_process_is_one_line(configs, refused, monkeypatch):
    """row_45: a process that torchrun did not start."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        variables = dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        refused("train.py", configs / "seg.py", "--launcher", "pytorch", says=[f"MASTER_PORT={port}", "free port"])


def test_check_makes_nothing(configs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call_tool("train.py", configs / "det.py", "--check") == 0
    assert "in order" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_several_processes_report_missing_data_once_as_the_last_line(tmp_path):
    """row_60"""
    config = ROOT / "det_configs/mask_rcnn_arm_b.py"
    result = run_tool("dist_train.sh", config, 8, cwd=tmp_path, timeout=60)
    assert result.returncode == 2 and not list(tmp_path.iterdir())
    assert result.stdout == ""
    assert re.fullmatch(r"error: train_dataloader[^\n]*data/coco does not exist[^\n]*\n", result.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (dict(PORT="abc"), "PORT=abc: give a number from 1 to 65535"),
        (dict(PORT="99999"), "PORT=99999: give a number"),
        (dict(NNODES="two"), "NNODES=two: give a number from 1"),
        (dict(NNODES="2"), "NNODES=2 needs MASTER_ADDR"),
        (dict(NNODES="2", MASTER_ADDR="host0"), "NNODES=2 needs NODE_RANK"),
        (dict(NNODES="2", MASTER_ADDR="host0", NODE_RANK="2"), "NODE_RANK=2: give a number from 0 to 1"),
    ],
)
def test_variables_of_the_scripts(variables, says, tmp_path):
    """row_45"""
    result = run_tool("dist_train.sh", "a.py", 2, cwd=tmp_path, env=variables)
    assert result.returncode == 2
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr) and says in result.stderr


@pytest.mark.slow
def test_a_taken_port_of_the_script_is_one_line(tmp_path):
    """row_45"""
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run_tool("dist_train.sh", "a.py", 2, cwd=tmp_path, env=dict(PORT=port))
    assert result.returncode == 2
    assert re.fullmatch(rf"error: PORT={port} is taken[^\n]+\n", result.stderr)
