"""Sources of images as users have them: links, lists, archives, pipes, damaged and unusual files."""

import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arm_images.errors import DataError
from arm_images.find import find_images
from arm_images.opencv import read_bgr
from arm_images.read import ImageFiles, read_labels, read_rgb
from arm_toolkit.datasets.check_ade import check_ade
from arm_toolkit.datasets.check_images import check_images
from arm_toolkit.datasets.class_folder import ClassFolder
from arm_toolkit.datasets.crop_classes import write_class_folders
from arm_toolkit.datasets.transforms import LoadImage, LoadLabels

ORIENTATION = 0x0112
rng = np.random.default_rng(0)


def save(path: Path, size=(40, 30), orientation: int = 1, **options) -> Path:
    """A smooth image with a bright left upper corner as it is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), 40, np.uint8)
    pixels[: size[1] // 3, : size[0] // 3] = 220
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, **dict(exif=exif) if orientation != 1 else {}, **options)
    return path


def load(labels: Path, image: Path | None = None, num_classes: int = 4, **info) -> np.ndarray:
    results = dict(seg_map_path=str(labels), seg_fields=[], **info)
    if image:
        results = LoadImage().transform(dict(img_path=str(image)) | results)
    return LoadLabels(num_classes).transform(results)["gt_seg_map"]


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_row_8_every_reader_turns_alike(tmp_path, orientation, kind):
    path = save(tmp_path / f"a.{kind}", orientation=orientation, **dict(quality=95) if kind == "jpg" else {})
    by_pillow = np.asarray(read_rgb(path)).astype(int)
    by_opencv = LoadImage().transform(dict(img_path=str(path)))["img"][..., ::-1].astype(int)
    assert by_pillow.shape == ((30, 40, 3) if orientation < 5 else (40, 30, 3)) == by_opencv.shape
    assert np.abs(by_pillow - by_opencv).max() <= 12


@pytest.mark.parametrize("orientation", [3, 6])
def test_row_8_label_maps_fit_the_upright_image(tmp_path, orientation):
    for split in ("training", "validation"):
        image = save(tmp_path / f"images/{split}/a.jpg", orientation=orientation)
        labels = tmp_path / f"annotations/{split}/a.png"
        labels.parent.mkdir(parents=True)
        upright = read_rgb(image).size
        Image.fromarray(np.ones(upright[::-1], np.uint8)).save(labels)
    assert load(labels, image).shape == upright[::-1]
    report = check_ade(tmp_path, 4)
    assert report.ok, str(report)
    assert any("orientation" in note and "a.jpg" in note for note in report.notes)
    if orientation == 6:
        Image.fromarray(np.ones((30, 40), np.uint8)).save(labels)  # as stored
        assert any("differ in size" in error for error in check_ade(tmp_path, 4).errors)
        with pytest.raises(DataError, match="a.png has 40x30 pixels, its image .*a.jpg 30x40"):
            load(labels, image)


def test_row_8_crops_are_upright(tmp_path):
    import json

    for split in ("train", "val"):
        save(tmp_path / f"coco/{split}2017/a.jpg", size=(90, 60), orientation=3, quality=95)
        content = dict(
            images=[dict(id=1, file_name="a.jpg", width=90, height=60)],
            categories=[dict(id=1, name="bright")],
            annotations=[dict(id=1, image_id=1, category_id=1, bbox=[60, 40, 30, 20])],  # the corner, upright
        )
        (tmp_path / "coco/annotations").mkdir(exist_ok=True)
        (tmp_path / f"coco/annotations/instances_{split}2017.json").write_text(json.dumps(content))
    write_class_folders(tmp_path / "coco", tmp_path / "out")
    crop = np.asarray(Image.open(next((tmp_path / "out/train/bright").iterdir())))
    assert crop[crop.shape[0] // 2, crop.shape[1] // 2].min() > 200


def test_row_50_a_size_stated_for_the_turned_image_is_refused(tmp_path):
    path = save(tmp_path / "a.jpg", orientation=6)
    load_image = LoadImage()
    assert load_image.transform(dict(img_path=str(path), height=40, width=30))["img_shape"] == (40, 30)
    with pytest.raises(DataError, match="a.jpg .*30x40 pixels.* states 40x30; without its EXIF orientation"):
        load_image.transform(dict(img_path=str(path), height=30, width=40))


def test_row_14_another_size_than_the_file_states_is_refused(tmp_path):
    path = save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="a.jpg .* states 40x31"):
        LoadImage().transform(dict(img_path=str(path), height=31, width=40))


# Label maps


@pytest.mark.parametrize("kind", ["16-bit PNG", "32-bit TIFF", "float TIFF", "three channels", "negative"])
def test_rows_9_and_25_labels_are_looked_at_before_any_cast(tmp_path, kind):
    labels = np.ones((8, 9), np.uint8)
    path = tmp_path / ("a.png" if "TIFF" not in kind and kind != "negative" else "a.tif")
    array = {
        "16-bit PNG": labels.astype(np.uint16) + 256,
        "32-bit TIFF": labels.astype(np.int32) + 512,
        "float TIFF": labels.astype(np.float32),
        "three channels": np.stack([labels] * 3, -1),
        "negative": -labels.astype(np.int32),
    }[kind]
    Image.fromarray(array).save(path)
    with pytest.raises(DataError, match=rf"label map .*{path.name}.*(257|513|-1|not one 8-bit channel: (RGB|F))"):
        load(path)


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "I"])
def test_right_labels_pass_in_every_depth(tmp_path, mode):
    labels = rng.integers(0, 2, (1, 9)).astype(np.uint8)
    path = tmp_path / "a.tif"
    image = {
        "I;16": lambda: Image.fromarray(labels.astype(np.uint16)),
        "I": lambda: Image.fromarray(labels.astype(np.int32)),
        "1": lambda: Image.fromarray(labels.astype(bool)),
        "P": lambda: Image.frombytes("P", (9, 1), labels.tobytes()),
        "L": lambda: Image.fromarray(labels),
    }[mode]()
    if mode == "P":
        image.putpalette([200, 0, 0, 0, 200, 0])
    image.save(path)
    assert np.array_equal(read_labels(path), labels) and np.array_equal(load(path), labels)


def test_row_25_another_size_is_refused(tmp_path):
    image = save(tmp_path / "a.jpg")
    Image.fromarray(np.ones((30, 39), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="a.png has 39x30 pixels, its image .*a.jpg 40x30"):
        load(tmp_path / "a.png", image)


def test_zero_is_ignored_as_in_mmseg(tmp_path):
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(stored).save(tmp_path / "a.png")
    from mmseg.datasets.transforms import LoadAnnotations

    for options in (dict(reduce_zero_label=True), dict(reduce_zero_label=False, label_map={1: 255, 3: 0})):
        info = dict(seg_map_path=str(tmp_path / "a.png"), seg_fields=[], **options)
        expected = LoadAnnotations().transform(dict(info, seg_fields=[]))["gt_seg_map"]
        assert np.array_equal(LoadLabels().transform(info)["gt_seg_map"], expected)


@pytest.mark.parametrize("values, ok", [((0, 255), False), ((0,), False), ((255,), False), ((1, 255), True)])
def test_row_5_a_split_needs_a_labelled_pixel(tmp_path, values, ok):
    for split in ("training", "validation"):
        save(tmp_path / f"images/{split}/a.jpg")
        (tmp_path / f"annotations/{split}").mkdir(parents=True)
        labels = np.resize(np.array(values, np.uint8), (30, 40))
        Image.fromarray(labels).save(tmp_path / f"annotations/{split}/a.png")
    report = check_ade(tmp_path, 4)
    assert report.ok == ok, str(report)
    if values == (0, 255):
        assert "no labelled pixel" in report.errors[0] and "0 and 1" in report.errors[0]


# Sources


def test_row_11_linked_folders_are_followed_once(tmp_path, caplog):
    save(tmp_path / "far/deep/b.png")
    save(tmp_path / "tree/a.png")
    (tmp_path / "tree/link").symlink_to(tmp_path / "far")
    (tmp_path / "far/loop").symlink_to(tmp_path / "far")
    (tmp_path / "tree/up").symlink_to(tmp_path / "tree")
    with caplog.at_level(logging.INFO, logger="arm_images"):
        files = find_images(tmp_path / "tree")
    assert files == [tmp_path / "tree/a.png", tmp_path / "tree/link/deep/b.png"]
    assert "2 images used (2 .png)" in caplog.text
    assert check_images(tmp_path / "tree").facts["images"] == 2


def test_row_12_class_folders_are_searched_at_any_depth(tmp_path):
    for name in ("train/cat/a.jpg", "train/cat/more/b.JPG", "train/dog/c.png"):
        save(tmp_path / name)
    transform = dict(input_size=32, is_training=False)
    assert ClassFolder(str(tmp_path), "train", transform).labels == [0, 0, 1]
    (tmp_path / "train/empty").mkdir()
    with pytest.raises(DataError, match="train/empty is a class without an image"):
        ClassFolder(str(tmp_path), "train", transform)


def test_row_15_what_is_left_out_is_said_in_one_line(tmp_path, caplog):
    for name in ("a.jpg", "b.JPG", "c.gif", "._a.jpg"):
        save(tmp_path / name, **dict(format="GIF" if name == "c.gif" else "JPEG"))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "more.tar.gz").write_bytes(b"")
    assert len(find_images(tmp_path)) == 2
    (line,) = caplog.messages
    for part in ("2 images used", "1 other files (.gif)", "notes of macOS", "not regular files", "compressed archives"):
        assert part in line
    assert len(check_images(tmp_path).notes) >= 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_row_27_encodings_of_lists(tmp_path, encoding):
    path = save(tmp_path / "é.png")
    (tmp_path / "list.txt").write_bytes("é.png\r\n\r\n".encode(encoding))
    if encoding.startswith("utf-8"):
        assert find_images(tmp_path / "list.txt") == [path]
        assert check_images(tmp_path / "list.txt").ok
        return
    with pytest.raises(DataError, match=r"list.txt is .*UTF-8.*iconv -f (UTF-16|LATIN1)"):
        find_images(tmp_path / "list.txt")
    assert not check_images(tmp_path / "list.txt").ok


@pytest.mark.parametrize("name", ["photo.jpg", "photo.tif", "x.tar.gz", "x.zip", "x.tgz"])
def test_row_27_one_image_or_a_compressed_archive_is_no_list(tmp_path, name):
    path = tmp_path / name
    if name.startswith("photo"):
        save(path)
    else:
        path.write_bytes(b"PK\x03\x04" if name.endswith("zip") else b"\x1f\x8b\x08" + bytes(range(256)))
    with pytest.raises(DataError, match=f"{name} is (one image; give|a zip|compressed)"):
        find_images(path)
    assert name in str(check_images(path).errors)


def test_row_51_a_pipe_among_images_is_left_out(tmp_path):
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert find_images(tmp_path) == [tmp_path / "a.png"]
    assert check_images(tmp_path).facts["images"] == 1
    with pytest.raises(DataError, match="b.png .*not a regular file"):
        LoadImage().transform(dict(img_path=str(tmp_path / "b.png")))
    with pytest.raises(DataError, match="b.png .*not a regular file"):
        load(tmp_path / "b.png")


@pytest.mark.parametrize("damage", ["cut at a header", "cut within a file", "junk after", "empty", "compressed"])
def test_row_51_damaged_archives_are_errors(tmp_path, damage):
    folder = tmp_path / "shards"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w:gz" if damage == "compressed" else "w") as tar:
        for name in "abcdef":
            tar.add(save(tmp_path / f"{name}.png"), arcname=f"{name}.png")
        end = tar.offset // 2 // 512 * 512
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(tmp_path / "a.png", arcname="a.png")
        second = tar.offset
    whole = (folder / "a.tar").read_bytes()
    data = {
        "cut at a header": whole[: 3 * second],
        "cut within a file": whole[: end + 100],
        "junk after": whole + whole,
        "empty": b"",
        "compressed": whole,
    }[damage]
    (folder / "a.tar").write_bytes(data)
    for path in (folder, folder / "a.tar"):
        with pytest.raises(DataError, match=r"a.tar is (damaged|not an uncompressed)"):
            find_images(path)
        assert not check_images(path).ok


# Damaged and unusual files


def test_row_23_every_failure_of_a_decoder_is_named_and_skipped(tmp_path, monkeypatch):
    save(tmp_path / "a.png", size=(200, 100))
    save(tmp_path / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # 20,000 pixels are more than twice that
    with pytest.raises(DataError, match="cannot read .*a.png .*decompression bomb"):
        ImageFiles(find_images(tmp_path)).load_rgb(0)
    assert ImageFiles(find_images(tmp_path), on_error="skip").load_rgb(0)[1] == 1
    with pytest.raises(DataError, match="a.png .*decompression bomb"):
        LoadImage().transform(dict(img_path=str(tmp_path / "a.png")))
    assert LoadImage(on_error="skip").transform(dict(img_path=str(tmp_path / "a.png"))) is None


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp", "bmp"])
def test_a_file_that_is_cut_off_is_refused_by_every_reader(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(rng.integers(0, 255, (90, 80, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=path.name):
        ImageFiles([path]).load_rgb(0)
    with pytest.raises(DataError, match=path.name):
        LoadImage().transform(dict(img_path=str(path)))
    assert not check_images(tmp_path).ok


def test_sixteen_bits_are_scaled_alike_and_wider_values_are_refused(tmp_path):
    grey = np.linspace(0, 65535, 64 * 48).reshape(48, 64)
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "a.png")
    expected = np.round(grey / 257)
    assert np.abs(np.asarray(read_rgb(tmp_path / "a.png"))[..., 0] - expected).max() <= 1
    assert np.array_equal(read_bgr((tmp_path / "a.png").read_bytes()), np.asarray(read_rgb(tmp_path / "a.png")))
    for array in (grey.astype(np.float32), grey.astype(np.int32) * 9):
        Image.fromarray(array).save(tmp_path / "b.tif")
        with pytest.raises(DataError, match="b.tif .*save it with 8 or 16 bits"):
            ImageFiles([tmp_path / "b.tif"]).load_rgb(0)
        with pytest.raises(DataError, match="b.tif .*save it with 8 or 16 bits"):
            LoadImage().transform(dict(img_path=str(tmp_path / "b.tif")))
