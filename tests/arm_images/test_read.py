"""Decoding images to RGB, and files that cannot be read."""

import copy
import logging
import multiprocessing
import pickle

import numpy as np
import pytest
from PIL import Image

from arm_images.errors import DataError
from arm_images.find import find_images
from arm_images.read import ImageFiles

RAMP = np.linspace(0, 255, 64)


def test_every_mode_becomes_upright_rgb(tmp_path):
    """The same ramp is read from RGB, greyscale, palette, RGBA, CMYK, 16-bit and rotated files."""
    grey = np.tile(RAMP.astype(np.uint8), (48, 1))
    rgb = Image.fromarray(np.stack([grey] * 3, 2))
    rgb.save(tmp_path / "rgb.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(tmp_path / "palette.png")
    rgb.convert("RGBA").save(tmp_path / "alpha.png")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side, to be rotated by 90 degrees
    rgb.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=98)
    files = ImageFiles(find_images(tmp_path))
    assert len(files) == 7
    for i, file in enumerate(files):
        image, position = files.load_rgb(i)
        array = np.asarray(image).astype(float)
        assert position == i and array.shape == (48, 64, 3), file
        assert np.abs(array.mean((0, 2)) - RAMP).max() < 6, file


@pytest.fixture
def broken(image_folder):
    """Two broken files that come before and after `b/` in sorted order; five files in all."""
    files = [image_folder / "a.jpg", image_folder / "c.jpg"]
    for file in files:
        file.write_bytes(b"\xff\xd8\xff broken")
    return image_folder


def test_unreadable_files_stop_the_run_or_are_skipped_with_a_warning(broken, caplog):
    with pytest.raises(DataError, match="cannot read .*a.jpg .*on_error='skip'"):
        ImageFiles(find_images(broken)).load_rgb(0)
    files = ImageFiles(find_images(broken), on_error="skip")
    for _ in range(2):  # a file is reported once
        with caplog.at_level(logging.WARNING, logger="arm_images"):
            assert files.load_rgb(0)[1] == 1
    skipped = [text.split(":")[0] for text in caplog.messages if text.startswith("skipped")]
    assert skipped == [f"skipped {broken / 'a.jpg'}"]
    assert files.skipped.tolist() == [True, False, False, False, False]
    with pytest.raises(ValueError, match="on_error='ignore' is unknown"):
        ImageFiles([], on_error="ignore")


def test_no_more_than_max_skipped_are_skipped(broken):
    files = ImageFiles(find_images(broken), on_error="skip", max_skipped=1)
    files.load_rgb(0)
    with pytest.raises(DataError, match="2 of 5 images cannot be read, the last .*c.jpg; .*max_skipped=1"):
        files.load_rgb(3)
    with pytest.raises(DataError, match="cannot read any of the 1 images, first .*a.jpg"):
        ImageFiles([broken / "a.jpg"], on_error="skip").load_rgb(0)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_share_the_record_of_skipped_files(broken, method):
    files = ImageFiles(find_images(broken), on_error="skip")
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=files.load_rgb, args=(index,)) for index in (0, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert files.skipped.tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda files: pickle.loads(pickle.dumps(files))])
def test_a_copy_has_a_record_of_its_own(broken, duplicate):
    files = ImageFiles(find_images(broken), on_error="skip", max_skipped=7)
    files.load_rgb(0)
    other = duplicate(files)
    assert list(other) == list(files) and (other.on_error, other.max_skipped) == ("skip", 7)
    assert other.skipped.tolist() == files.skipped.tolist() == [True, False, False, False, False]
    other.load_rgb(3)
    assert other.skipped[3] and not files.skipped[3]
    worker = multiprocessing.get_context("fork").Process(target=other.load_rgb, args=(3,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
