"""Every tool that writes, on a disk that is full: one line with the file, no half file, an earlier file as it was."""

import os
from pathlib import Path

import pytest

from tests.helpers.full_disk import fill, small_disk
from tests.helpers.runs import pretrain_config, seg_config, train
from tests.helpers.tools import invoke, run_tool

pytestmark = pytest.mark.xdist_group("full disk")
TINY = ("scan", "--grid", "2x2", "--channels", 8, "--only", "reference", "--seconds", 0.01, "--repeats", 1)


@pytest.fixture(scope="module")
def files(shapes, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    cfg = pretrain_config(shapes, **{"train_cfg.max_epochs": 2})
    cfg.dump(folder / "pretrain.py")
    seg_config(shapes).dump(folder / "seg.py")
    train(cfg, folder / "work")
    return dict(
        checkpoint=folder / "work/epoch_2.pth",
        pretrain=folder / "pretrain.py",
        seg=folder / "seg.py",
        images=shapes / "coco/val2017",
        coco=shapes / "coco",
    )


# what is written (with a suffix: a file, of which an earlier one is there), and the command; "@NAME" stands for a file
TOOLS = {
    "convert to pth": ("new.pth", ["convert_checkpoint.py", "@checkpoint", "OUT", "--to", "backbone"]),
    "convert to safetensors": ("new.safetensors", ["convert_checkpoint.py", "@checkpoint", "OUT", "--to", "backbone"]),
    "tokenizer": ("t.pth", ["fit_tokenizer.py", "@images", "OUT", "--tokens", 4, "--size", 96, "--patch-size", 16]),
    "shapes": ("shapes", ["prepare_data.py", "shapes", "OUT", "--train", 8, "--val", 2, "--size", 96]),
    "classes": ("classes", ["prepare_data.py", "classes", "@coco", "OUT"]),
    "reconstruction": ("r.png", ["reconstruct.py", "@checkpoint", "@images", "--out", "OUT", "--count", 1]),
    "features": ("features", ["visualize_features.py", "@checkpoint", "@images", "--out", "OUT", "--count", 1]),
    "benchmark's table": ("b.json", ["benchmark.py", *TINY, "--json", "OUT"]),
    "benchmark's plot": ("b.png", ["benchmark.py", *TINY, "--plot", "OUT"]),
    "pretraining": ("work", ["pretrain.py", "@pretrain", "--work-dir", "OUT"]),
    "training": ("work", ["train.py", "@seg", "--work-dir", "OUT"]),
}


def command(tool: str, out: Path, files: dict[str, Path]) -> list:
    return [out if a == "OUT" else files[a[1:]] if str(a).startswith("@") else a for a in TOOLS[tool][1]]


def left(folder: Path) -> list[Path]:
    logs = (".log", ".json", ".py", ".lock")  # of a training: may be there, empty or whole
    found = [file for file in folder.rglob("*") if file.is_file() and file.name != "filler"]
    return [file for file in found if file.suffix not in logs and "tfevents" not in file.name]


@pytest.mark.parametrize("tool", TOOLS)
def test_rows_36_to_38_full_disk(tool, files, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        out = disk / TOOLS[tool][0]
        if out.suffix:
            out.write_bytes(b"earlier")
        fill(disk)
        done = invoke(*command(tool, out, files))
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2 and len(lines) == 1, done.stderr
        assert str(out) in lines[0] and "No space left on device" in lines[0] and "Traceback" not in done.stderr
        assert [file for file in left(disk) if file != out] == []
        if out.suffix:
            assert out.read_bytes() == b"earlier"


IN_PLACE_OF_A_FOLDER = ["convert to pth", "shapes", "classes", "features", "benchmark's table", "training"]


@pytest.mark.parametrize("tool", IN_PLACE_OF_A_FOLDER)
@pytest.mark.parametrize("what", ["a file", "a link to nothing"])
def test_a_path_through_what_is_no_folder(tool, what, files, tmp_path):
    wrong = tmp_path / "wrong"
    if what == "a file":
        wrong.write_text("mine")
    else:
        wrong.symlink_to(tmp_path / "absent/folder")
    done = invoke(*command(tool, wrong / TOOLS[tool][0], files))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if what == "a file":
        assert done.returncode == 2 and len(lines) == 1 and str(wrong) in lines[0], done.stderr
        assert wrong.read_text() == "mine"
    else:
        assert done.returncode in (0, 2) and len(lines) == (done.returncode == 2), done.stderr


def test_a_device_or_pipe_is_not_replaced(files, tmp_path):
    """A pipe, because a test that fails as root must not replace /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = invoke(*command("benchmark's table", pipe, files))
    assert done.returncode == 2 and f"{pipe} cannot be written (it is a device or a pipe" in done.stderr
    assert pipe.is_fifo()


def test_the_file_that_a_link_names_is_written(files, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "new.pth").symlink_to(tmp_path / "elsewhere/real.pth")
    done = invoke(*command("convert to pth", tmp_path / "new.pth", files))
    assert done.returncode == 0 and (tmp_path / "new.pth").is_symlink()
    assert [file.name for file in (tmp_path / "elsewhere").iterdir()] == ["real.pth"]


def test_row_37_the_note_of_the_last_checkpoint_cannot_be_written(shapes, tmp_path, monkeypatch):
    """The run goes on, says so, and --resume finds the checkpoint."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "last_checkpoint").symlink_to("/dev/full")
    cfg = pretrain_config(shapes, **{"train_cfg.max_epochs": 2})
    train(cfg, work)
    assert "last_checkpoint cannot be written (No space left on device)" in next(work.glob("*/*.log")).read_text()
    assert train(pretrain_config(shapes), work, "--resume").epoch == 4


def test_row_2_a_batch_that_cannot_be_saved_hides_no_error(shapes, tmp_path):
    from arm_toolkit.errors import NotFinite

    cfg = pretrain_config(shapes, **{"optim_wrapper.optimizer.lr": 1e30, "param_scheduler.warmup": 0})
    cfg.param_scheduler = None
    (tmp_path / "work").mkdir()
    (tmp_path / "work/non_finite_batch_0.pth").symlink_to("/dev/full")
    with pytest.raises(NotFinite, match="iteration .* cannot be saved in .*; continue with --resume"):
        train(cfg, tmp_path / "work")


@pytest.mark.slow
@pytest.mark.parametrize(("sink", "status"), [("> /dev/full", 2), ("| true", 141)])
def test_row_36_the_output_cannot_be_written(sink, status, tmp_path):
    shell = f"set -o pipefail; python tools/model_info.py arm_tiny_patch16_224 {sink}"
    done = run_tool("bash", "-c", shell, cwd=Path(__file__).parents[2])
    assert done.returncode == status
    assert done.stderr.strip().count("\n") == 0 and "Traceback" not in done.stderr and "ignored" not in done.stderr


@pytest.mark.slow
def test_row_37_a_training_whose_console_is_full_ends_well(files, tmp_path):
    shell = f"python tools/train.py {files['pretrain']} --work-dir {tmp_path}/work > /dev/full"
    done = run_tool("bash", "-c", shell, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "work/epoch_2.pth").is_file()
