"""A full disk or a damaged file loses nothing that was already made: files are written whole or not at all."""

import os
import zipfile

import pytest
import torch

from arm_backbone.checkpoint.files import CheckpointError, is_whole, read_checkpoint, write_checkpoint
from arm_backbone.checkpoint.writing import WriteError, replacing
from arm_toolkit.engine.newest import newest_checkpoint
from tests.helpers.full_disk import file_size_limit, fill, small_disk

BIG = dict(a=torch.zeros(2**18), b=torch.ones(3))  # 1 MiB


@pytest.mark.parametrize("name", ["new.pth", "new.safetensors"])
def test_row_38_full_disk_in_writing_a_checkpoint(name, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        write_checkpoint(disk / name, dict(a=torch.ones(3)), {})
        before = (disk / name).read_bytes()
        fill(disk)
        with pytest.raises(WriteError) as error:
            write_checkpoint(disk / name, BIG, {})
        assert str(disk / name) in str(error.value) and "No space left on device" in str(error.value)
        assert "free space" in str(error.value)
        assert (disk / name).read_bytes() == before
        assert sorted(os.listdir(disk)) == ["filler", name]


@pytest.mark.parametrize("name", ["new.pth", "new.safetensors"])
def test_row_38_file_size_limit_in_writing_a_checkpoint(name, tmp_path):
    write_checkpoint(tmp_path / name, dict(a=torch.ones(3)), {})
    with file_size_limit(100_000), pytest.raises(WriteError, match="File too large.*ulimit -f"):
        write_checkpoint(tmp_path / name, BIG, {})
    assert os.listdir(tmp_path) == [name] and len(read_checkpoint(tmp_path / name)["state_dict"]) == 1


def test_row_36_text_and_nothing_written(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("earlier")
    with file_size_limit(1000), pytest.raises(WriteError, match="results.json cannot be written"):
        with replacing(path) as partial:
            partial.write_text("x" * 2000)
    with pytest.raises(WriteError, match="results.json cannot be written"):
        with replacing(path):
            pass
    with pytest.raises(WriteError, match="results.json/a cannot be written|results.json is not a folder"):
        with replacing(path / "a") as partial:
            partial.write_text("x")
    assert os.listdir(tmp_path) == ["results.json"] and path.read_text() == "earlier"


def test_an_error_of_reading_is_not_called_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "new") as partial:
        partial.write_text("x")
        open(tmp_path / "missing")
    assert not os.listdir(tmp_path)


def flipped(path, name_part: str) -> None:
    """Flip one bit in the middle of a part of a `.pth`."""
    with zipfile.ZipFile(path) as file:
        part = next(info for info in file.infolist() if name_part in info.filename)
        header = part.header_offset
    data = bytearray(path.read_bytes())
    names = int.from_bytes(data[header + 26 : header + 28], "little") + int.from_bytes(
        data[header + 28 : header + 30], "little"
    )
    data[header + 30 + names + part.file_size // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["data/0", "data/1", "data.pkl"])
def test_row_47_flipped_bit(part, tmp_path):
    path = tmp_path / "flipped.pth"
    write_checkpoint(path, BIG, {})
    flipped(path, part)
    with pytest.raises(CheckpointError, match="flipped.pth"):
        read_checkpoint(path)
    assert not is_whole(path)


def test_files_without_checksums_load_as_before(tmp_path):
    torch.save(dict(state_dict=BIG), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pth")["state_dict"].keys() == BIG.keys()


def empty(path):
    path.write_bytes(b"")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1000])


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def bit(path):
    flipped(path, "data/0")


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not noted"])
@pytest.mark.parametrize("damage", [empty, cut_off, zeros, bit])
def test_row_39_newest_checkpoint_damaged(damage, noted, tmp_path, capsys):
    for age, name in enumerate(("iter_4.pth", "iter_8.pth")):
        write_checkpoint(tmp_path / name, BIG, {})
        if name == "iter_8.pth":
            damage(tmp_path / name)
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_8.pth") if noted else "")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_4.pth")
    (line,) = capsys.readouterr().out.splitlines()
    assert "iter_8.pth" in line and "iter_4.pth" in line
    damage(tmp_path / "iter_4.pth")
    with pytest.raises(CheckpointError, match="no other checkpoint; omit --resume"):
        newest_checkpoint(tmp_path)


NOTES = ["", "/gone/iter_8.pth", "OTHER/iter_8.pth", "/etc/hostname", "x" * 100_000, "\0\1"]


@pytest.mark.parametrize("note", NOTES, ids=["empty", "gone", "another run", "no checkpoint", "long", "binary"])
def test_row_39_the_note_names_another_place(note, tmp_path, capsys):
    """A work dir that was copied resumes from its own files; what is no file is passed over."""
    for folder in (tmp_path / "work", tmp_path / "other"):
        folder.mkdir()
        write_checkpoint(folder / "iter_8.pth", BIG, {})
    work = tmp_path / "work"
    (work / "last_checkpoint").write_text(note.replace("OTHER", str(tmp_path / "other")))
    (work / "iter_9.pth").symlink_to("/gone")
    (work / "epoch_9.pth").mkdir()
    os.mkfifo(work / "iter_10.pth")
    assert newest_checkpoint(work) == str(work / "iter_8.pth") and not capsys.readouterr().out
    (work / "iter_8.pth").unlink()
    elsewhere = str(tmp_path / "other/iter_8.pth") if "OTHER" in note else None  # as with out_dir
    if note != "/etc/hostname":
        assert newest_checkpoint(work) == elsewhere


def test_row_39_a_copy_has_other_times(tmp_path):
    """The note's name counts in a copied work dir, whichever file was copied last."""
    for age, name in enumerate(("iter_8.pth", "iter_4.pth")):
        write_checkpoint(tmp_path / name, BIG, {})
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "last_checkpoint").write_text("/former/place/iter_8.pth")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_8.pth")


def test_two_processes_write_one_file(tmp_path, monkeypatch):
    """As the label map of an image that the sampler repeats, so that every process has as many images."""
    path = tmp_path / "map.png"
    with replacing(path) as first:
        first.write_text("whole")
        monkeypatch.setenv("RANK", "1")
        with replacing(path) as second:
            second.write_text("whole")
        monkeypatch.delenv("RANK")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]
