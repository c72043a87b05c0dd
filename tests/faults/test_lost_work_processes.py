"""Two runs in one work dir, a killed launcher, Ctrl-C: no run overwrites another's files or loses its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from arm_backbone.checkpoint.writing import uninterrupted
from arm_toolkit import interrupts
from arm_toolkit.engine.runner import ARMRunner
from arm_toolkit.engine.work_dir_lock import one_run, refuse_second_run
from arm_toolkit.errors import ConfigError, run_tool
from arm_toolkit.interrupts import remembered_interrupts
from tests.helpers.paths import ROOT
from tests.helpers.runs import pretrain_config, seg_config, train
from tests.helpers.tools import call_tool


def in_child(function) -> str:
    """The message of the ConfigError that the function raises in a forked process; "" if it raises none."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            function()
        except ConfigError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def locks(work_dir: Path):
    def lock() -> None:
        with one_run(work_dir, "none"):
            pass

    return lock


def test_row_41_second_run_in_a_work_dir(tmp_path):
    work = tmp_path / "work"
    assert in_child(lambda: refuse_second_run(work)) == "" and not work.exists()
    with one_run(work, "none"):
        for second in (locks(work), lambda: refuse_second_run(work)):
            said = in_child(second)
            assert str(work) in said and f"process {os.getpid()}" in said and os.uname().nodename in said
            assert time.strftime("since %Y-") in said and f"remove {work / 'run.lock'}" in said
        assert in_child(locks(tmp_path / "other")) == ""
    assert in_child(locks(work)) == "" and not os.listdir(work)


def test_row_41_a_killed_run_leaves_no_lock(tmp_path):
    child = os.fork()
    if not child:
        with one_run(tmp_path, "none"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert os.listdir(tmp_path) == ["run.lock"]  # its text is stale, the lock itself has gone
    assert in_child(lambda: refuse_second_run(tmp_path)) == ""
    assert in_child(locks(tmp_path)) == "" and not os.listdir(tmp_path)


def test_row_41_a_lock_that_a_crashed_host_kept_can_be_removed(tmp_path):
    with one_run(tmp_path, "none"):
        (tmp_path / "run.lock").unlink()
        assert in_child(locks(tmp_path)) == ""


def test_row_41_several_processes_of_one_run(tmp_path, monkeypatch):
    with one_run(tmp_path, "none"):
        monkeypatch.setenv("RANK", "1")
        assert in_child(locks(tmp_path)) != ""  # RANK means nothing without a launcher

        def second_rank() -> None:
            with one_run(tmp_path, "pytorch"):
                pass

        assert in_child(second_rank) == ""


def test_row_41_the_tool_refuses_and_makes_nothing(shapes, tmp_path, capsys):
    seg_config(shapes).dump(tmp_path / "config.py")
    work = tmp_path / "work"
    with one_run(work, "none"):
        before = sorted(os.listdir(work))
        said = in_child(lambda: run_train(tmp_path, work))
        assert "belongs to a run that has not ended" in said, said
        assert sorted(os.listdir(work)) == before


def run_train(folder: Path, work: Path) -> None:
    """Train in this (forked) process, and hand the error line back as a ConfigError."""
    import contextlib
    import io

    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        status = call_tool("train.py", folder / "config.py", "--work-dir", work)
    raise ConfigError(f"{status}: {err.getvalue()}")


@pytest.fixture
def python_handles_ctrl_c(monkeypatch):
    monkeypatch.setattr(interrupts, "_pressed", False)
    for name in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def raises_it() -> None:
    raise KeyboardInterrupt


def hides_it() -> None:
    """As mmengine does while it formats a configuration."""
    try:
        raise KeyboardInterrupt
    except:  # noqa: E722
        raise SyntaxError("Failed to format the config file")  # noqa: B904


def wraps_it() -> None:
    try:
        hides_it()
    except SyntaxError as error:
        raise ConfigError("the configuration cannot be built") from error


class Deaf:
    """Python ignores what is raised here, as in the hooks of os.fork."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def ignores_it() -> None:
    """As when data workers are started: they hear it, the process that starts them does not."""
    Deaf()
    raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")


@pytest.mark.parametrize("main", [raises_it, hides_it, wraps_it, ignores_it])
@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_row_42_ctrl_c_is_one_line(main, rank, capsys, monkeypatch, python_handles_ctrl_c):
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as end:
        run_tool(main, interrupted="interrupted; continue with --resume")
    assert end.value.code == 130
    assert capsys.readouterr().err.strip() == ("" if rank == "1" else "interrupted; continue with --resume")


def test_row_42_ctrl_c_waits_for_a_checkpoint(shapes, tmp_path, monkeypatch, python_handles_ctrl_c):
    """The file is complete, and no checkpoint follows it."""
    save = torch.save

    def interrupted_save(*arguments, **options) -> None:
        signal.raise_signal(signal.SIGINT)
        save(*arguments, **options)

    monkeypatch.setattr(torch, "save", interrupted_save)
    with pytest.raises(KeyboardInterrupt):
        train(pretrain_config(shapes), tmp_path / "work")
    assert [file.name for file in (tmp_path / "work").glob("*.pth*")] == ["epoch_2.pth"]
    assert torch.load(tmp_path / "work/epoch_2.pth", weights_only=True)["meta"]["epoch"] == 2


class DeafHook(Hook):
    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        if runner.iter == 2:
            Deaf()


HALF_MADE = """
import signal
from arm_toolkit.errors import run_tool
class Iterator:
    def __init__(self):
        signal.raise_signal(signal.SIGINT)
    def __del__(self):
        raise AttributeError("_workers_status")
run_tool(Iterator)
"""


def test_row_42_what_the_end_deletes_prints_nothing():
    """A data loader's iterator that Ctrl-C interrupted while it was made."""
    done = subprocess.run([sys.executable, "-c", HALF_MADE], capture_output=True, text=True, preexec_fn=_heed_signals)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


def test_row_42_an_ignored_ctrl_c_ends_a_training(shapes, tmp_path, monkeypatch, python_handles_ctrl_c):
    build = ARMRunner.build_train_loop
    monkeypatch.setattr(
        ARMRunner, "build_train_loop", lambda self, loop: (self.register_hook(DeafHook()), build(self, loop))[1]
    )
    with pytest.raises(KeyboardInterrupt), remembered_interrupts():
        train(pretrain_config(shapes), tmp_path / "work")
    scalars = next((tmp_path / "work").glob("*/vis_data/scalars.json")).read_text().splitlines()
    assert len(scalars) == 2  # iterations that were logged


WORKERS = """
import os, signal, sys
from arm_toolkit.interrupts import remembered_interrupts
def show(error):
    sys.excepthook(type(error), error, None)
with remembered_interrupts():
    if not os.fork():
        show(BrokenPipeError("worker"))
        show(ValueError("worker"))
        os._exit(0)
    os.wait()
    show(BrokenPipeError("parent"))
    if not os.fork():
        signal.raise_signal(signal.SIGINT)
        show(ValueError("interrupted worker"))
    assert os.wait()[1] == 0
show(EOFError("later"))
"""


def test_row_42_data_workers_print_nothing():
    done = subprocess.run([sys.executable, "-c", WORKERS], capture_output=True, text=True, preexec_fn=_heed_signals)
    assert done.stderr.splitlines() == ["ValueError: worker", "BrokenPipeError: parent", "EOFError: later"]


def test_row_42_what_is_not_interrupted(python_handles_ctrl_c):
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("all")
    with pytest.raises(KeyboardInterrupt) as raised, uninterrupted():
        signal.raise_signal(signal.SIGINT)
        raise OSError("no space left")
    assert done == ["all"] and isinstance(raised.value.__context__, OSError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def launch(command: list, log: Path) -> subprocess.Popen:
    """Start a command as a shell in a terminal does: tests that run in the background inherit ignored signals."""
    return subprocess.Popen(
        list(map(str, command)),
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable},
        start_new_session=True,
        preexec_fn=_heed_signals,
    )


def _heed_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_for(log: Path, text: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.1)


def training_processes(work: Path) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if str(work).encode() in words and b"train.py" in words:
            found.append(int(folder.name))
    return found


def restart_and_interrupt(command: list, work: Path, log: Path) -> None:
    """The lock of the dead run does not hinder; a second run is refused in one line; Ctrl-C ends all in one line."""
    run = launch([*command, "--resume"], log)
    try:
        wait_for(log, "Epoch(train)", run)
        assert "resumed epoch: " in log.read_text()
        second = launch([*command, "--resume"], work.with_name("second"))
        assert second.wait(60) == 2
        (line,) = work.with_name("second").read_text().splitlines()
        assert line.startswith("error: work dir") and "belongs to a run that has not ended" in line
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(60) == 130 and not training_processes(work)
    finally:
        run.kill()
    said = log.read_text()
    assert "Traceback" not in said and "closing signal" not in said
    assert said.splitlines()[-1] == "interrupted; continue with --resume"


FAILS = """
import os, signal, sys
from arm_toolkit.errors import ConfigError, run_tool
def main():
    rank = os.environ["RANK"]
    HOW
run_tool(main)
"""
HOWS = {
    "all the same error": ('raise ConfigError("lr=x")', 2, ["error: lr=x"]),
    "an error of one": ('raise ConfigError("lr=x") if rank == "1" else signal.pause()', 2, ["error: lr=x"]),
    "one without memory": (
        "os.kill(os.getpid(), signal.SIGKILL) if rank == '1' else signal.pause()",
        137,
        [
            "error: process 1 was ended by SIGKILL (the system does that when memory runs out), and the others with "
            "it; continue with --resume"
        ],
    ),
    "the terminal is closed": (
        "os.kill(os.getppid(), signal.SIGHUP) if rank == '0' else signal.pause()",
        129,
        ["", "interrupted by SIGHUP; continue with --resume"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
def test_row_60_several_processes_end_with_one_line(how, tmp_path):
    what, status, lines = HOWS[how]
    (tmp_path / "train.py").write_text(FAILS.replace("HOW", what))
    command = [sys.executable, "-m", "arm_toolkit.processes", "--standalone", "--nproc_per_node=2"]
    run = launch([*command, tmp_path / "train.py"], tmp_path / "log")
    assert run.wait(60) == status
    assert (tmp_path / "log").read_text().splitlines() == lines


@pytest.mark.slow
def test_row_60_a_hangup_under_nohup_ends_nothing(tmp_path):
    (tmp_path / "train.py").write_text("import os, signal, time\nos.kill(os.getppid(), signal.SIGHUP)\ntime.sleep(1)")
    command = ["nohup", sys.executable, "-m", "arm_toolkit.processes", "--standalone", "--nproc_per_node=2"]
    assert launch([*command, tmp_path / "train.py"], tmp_path / "log").wait(60) == 0, (tmp_path / "log").read_text()


@pytest.mark.slow
def test_row_40_a_killed_launcher_leaves_no_process(shapes, tmp_path):
    pretrain_config(shapes, **{"train_cfg.max_epochs": 5000}).dump(tmp_path / "config.py")
    work, log = tmp_path / "work", tmp_path / "log"
    command = ["bash", ROOT / "tools/dist_train.sh", tmp_path / "config.py", 2, "--work-dir", work]
    launcher = launch(command, log)
    try:
        wait_for(log, "Saving checkpoint at 4 epochs", launcher)  # the one at 2 is written
        assert len(training_processes(work)) >= 3  # the launcher and its two workers
        launcher.kill()
        launcher.wait()
        end = time.monotonic() + 10
        while training_processes(work) and time.monotonic() < end:
            time.sleep(0.1)
        assert not training_processes(work)
        restart_and_interrupt(command, work, log)
    finally:
        for process in training_processes(work):
            os.kill(process, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["load_config", "Epoch(train)"])
def test_row_42_ctrl_c_in_a_run(moment, shapes, tmp_path):
    pretrain_config(shapes, **{"train_cfg.max_epochs": 5000}).dump(tmp_path / "config.py")
    work, log = tmp_path / "work", tmp_path / "log"
    run = launch([sys.executable, ROOT / "tools/train.py", tmp_path / "config.py", "--work-dir", work], log)
    try:
        if moment == "load_config":
            time.sleep(1.5)  # imports and the configuration take longer
        else:
            wait_for(log, moment, run)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(60) == 130
    finally:
        run.kill()
    lines = log.read_text().splitlines()
    assert "Traceback" not in log.read_text() and lines[-1] == "interrupted; continue with --resume"
    assert not (work / "run.lock").exists()
