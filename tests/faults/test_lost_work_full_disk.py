"""A disk that fills up while a run logs or a test writes its predictions."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.full_disk import fill, small_disk
from tests.helpers.runs import det_config, pretrain_config, seg_config, train
from tests.helpers.tools import invoke

pytestmark = pytest.mark.xdist_group("full disk")


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory) -> Path:
    """A configuration and a checkpoint of a detector and of a segmentor after one iteration."""
    folder = tmp_path_factory.mktemp("trained")
    one = dict(
        seg={"train_cfg.max_iters": 1}, det={"train_cfg.max_epochs": 1, "train_dataloader.num_batch_per_epoch": 1}
    )
    for kind, config in dict(seg=seg_config, det=det_config).items():
        cfg = config(shapes, validate=True, **one[kind])
        cfg.dump(folder / f"{kind}.py")
        train(cfg, folder / kind)
        newest = (folder / kind / "last_checkpoint").read_text()
        shutil.copy(newest, folder / f"{kind}.pth")
    return folder


def run_test(trained: Path, kind: str, work: Path, *arguments):
    return invoke("test.py", trained / f"{kind}.py", trained / f"{kind}.pth", "--work-dir", work, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "option"), [("det", "--out"), ("seg", "--out"), ("det", "--show-dir"), ("seg", "--show-dir")]
)
def test_row_36_full_disk_in_a_test(kind, option, trained, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        target = disk / "r.pkl" if (kind, option) == ("det", "--out") else disk / "out"
        if target.suffix:
            target.write_bytes(b"earlier")
        fill(disk)
        done = run_test(trained, kind, tmp_path / "work", option, target)
        assert done.returncode == 2, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and str(disk) in lines[0] and "No space left on device" in lines[0], done.stderr
        files = [file for file in disk.rglob("*") if file.is_file() and file.name != "filler"]
        assert files == ([target] if target.suffix else [])
        if target.suffix:
            assert target.read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("kind", "option", "name"), [("det", "--out", "r.pkl"), ("seg", "--out", "maps"), ("seg", "--show-dir", "drawn")]
)
def test_row_36_a_place_that_cannot_be_written_is_found_before_the_test(kind, option, name, trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = run_test(trained, kind, tmp_path / "work", option, tmp_path / "file" / name)
    assert done.returncode == 2 and "is not a folder" in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "work").exists() and (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_what_a_test_saves(trained, tmp_path):
    done = run_test(trained, "seg", tmp_path / "work", "--out", tmp_path / "out", "--show-dir", tmp_path / "drawn")
    assert done.returncode == 0, done.stderr
    maps = sorted((tmp_path / "out").glob("*"))
    assert len(maps) == 6 and all(np.array(Image.open(file)).dtype == np.uint8 for file in maps)
    assert len(list((tmp_path / "drawn/vis_data/vis_image").glob("test_*.png"))) == 6
    done = run_test(trained, "det", tmp_path / "work", "--out", tmp_path / "r.pkl", "--show-dir", tmp_path / "boxes")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.pkl").stat().st_size and len(list((tmp_path / "boxes").glob("*"))) == 6


def test_row_37_full_disk_for_logs(shapes, tmp_path, capfd):
    """scalars.json, images and TensorBoard's events are on a full disk; the training ends with its checkpoints."""
    with small_disk(tmp_path / "disk") as disk:
        cfg = pretrain_config(shapes)
        cfg.visualizer.save_dir = str(disk)
        os.mkdir(disk / "vis_data")
        fill(disk)
        train(cfg, tmp_path / "work")
        err = capfd.readouterr().err
        assert "Traceback" not in err, err
        said = [line for line in err.splitlines() if "cannot be written" in line]
        assert 1 <= len(said) <= 2 and all("No space left on device" in line for line in said), err
        assert (tmp_path / "work/epoch_4.pth").is_file()


def test_row_37_full_disk_for_the_text_log(shapes, tmp_path, capfd, monkeypatch):
    """/dev/full accepts no byte, as a full disk."""

    def opened(self):
        return open("/dev/full" if self.baseFilename.endswith(".log") else self.baseFilename, self.mode)

    monkeypatch.setattr(logging.FileHandler, "_open", opened)
    train(pretrain_config(shapes, **{"train_cfg.max_epochs": 2}), tmp_path / "work")
    err = capfd.readouterr().err
    said = [line for line in err.splitlines() if "cannot be written" in line]
    assert len(said) == 1 and ".log" in said[0] and "Traceback" not in err and "Logging error" not in err, err
