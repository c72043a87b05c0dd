"""What `tools/prepare_data.py check` says ok to is read by training, and what it refuses training refuses too."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arm_images.errors import DataError
from arm_images.find import find_images
from arm_images.read import ImageFiles
from arm_toolkit.datasets.check import check_coco, compare_categories
from arm_toolkit.datasets.check_ade import check_ade
from arm_toolkit.datasets.check_class_folders import check_class_folders, check_imagenet_set
from arm_toolkit.datasets.check_images import check_images
from arm_toolkit.datasets.class_folder import ClassFolder
from arm_toolkit.datasets.coco import ARMCocoDataset
from arm_toolkit.datasets.segmentation import ARMSegDataset
from arm_toolkit.datasets.shapes import write_shapes
from arm_toolkit.engine.checks import check_num_classes
from tests.helpers.json_files import change_json
from tests.helpers.tools import call_tool

CLASSES = ("disc", "square", "triangle")
SIDE, COUNT = 96, 3  # pixels and training images
TRANSFORM = dict(input_size=32, is_training=False)
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def few_shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("few") / "shapes"
    write_shapes(folder, train=COUNT, val=1, size=SIDE)
    return folder


@pytest.fixture
def data(few_shapes, tmp_path) -> Path:
    shutil.copytree(few_shapes, tmp_path / "data")
    return tmp_path / "data"


def coco_report(data: Path, split: str = "train", **options):
    return check_coco(data / f"coco/annotations/instances_{split}2017.json", data / f"coco/{split}2017", **options)


def coco_dataset(data: Path, split: str = "train", **options) -> ARMCocoDataset:
    return ARMCocoDataset(
        ann_file=str(data / f"coco/annotations/instances_{split}2017.json"),
        data_prefix=dict(img=str(data / f"coco/{split}2017")),
        metainfo=dict(classes=CLASSES),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        serialize_data=False,  # each serialization collects garbage, for 0.2 s
        pipeline=[
            dict(type="LoadImage", **options),
            dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True),
        ],
    )


def coco_objects(data: Path) -> int:
    return sum(len(item["gt_bboxes"]) for item in coco_dataset(data))


def seg_dataset(data: Path, split: str = "training", **options) -> ARMSegDataset:
    arguments = dict(
        data_root=str(data / "ade"),
        data_prefix=dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}"),
        metainfo=dict(classes=("background", *CLASSES)),
        reduce_zero_label=True,
        serialize_data=False,
        pipeline=[dict(type="LoadImage"), dict(type="LoadLabels", num_classes=4)],
    )
    return ARMSegDataset(**arguments | options)


def reads(dataset) -> bool:
    """Whether every item of a data set can be read; anything but a DataError fails the test."""
    try:
        for item in dataset():
            assert item is not None
    except DataError:
        return False
    return True


# Images of every kind


def encoded(kind: str, image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def image_of(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).convert(mode)


def with_transparency() -> bytes:
    return encoded("PNG", image_of("P"), transparency=3)


def huge() -> bytes:
    """A PNG of 20000 x 20000 pixels in a few hundred bytes of header."""
    data = bytearray(encoded("PNG", image_of("L")))
    data[16:24] = (20000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


GREY = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
READ = {
    "JPEG": lambda: encoded("JPEG", image_of()),
    "progressive JPEG": lambda: encoded("JPEG", image_of(), progressive=True),
    "greyscale JPEG": lambda: encoded("JPEG", image_of("L")),
    "CMYK JPEG": lambda: encoded("JPEG", image_of("CMYK")),
    "JPEG with bytes after its end": lambda: encoded("JPEG", image_of()) + b"\0" * 100,
    "PNG": lambda: encoded("PNG", image_of()),
    "PNG with alpha": lambda: encoded("PNG", image_of("RGBA")),
    "greyscale PNG with alpha": lambda: encoded("PNG", image_of("LA")),
    "palette PNG with transparency": with_transparency,
    "1-bit PNG": lambda: encoded("PNG", image_of("1")),
    "16-bit PNG": lambda: encoded("PNG", Image.fromarray(GREY.astype(np.uint16) * 7)),
    "16-bit TIFF": lambda: encoded("TIFF", Image.fromarray(GREY.astype(np.uint16) * 7)),
    "TIFF": lambda: encoded("TIFF", image_of()),
    "TIFF with LZW": lambda: encoded("TIFF", image_of(), compression="tiff_lzw"),
    "BMP": lambda: encoded("BMP", image_of()),
    "WebP": lambda: encoded("WEBP", image_of()),
    "animated WebP": lambda: encoded("WEBP", image_of(), save_all=True, append_images=[image_of()]),
    "animated PNG": lambda: encoded("PNG", image_of(), save_all=True, append_images=[image_of()]),
    "TIFF of two pages": lambda: encoded("TIFF", image_of(), save_all=True, append_images=[image_of()]),
}
REFUSED = {
    "float TIFF": lambda: encoded("TIFF", Image.fromarray(GREY.astype(np.float32))),
    "32-bit TIFF": lambda: encoded("TIFF", Image.fromarray(GREY.astype(np.int32) * 99)),
    "JPEG cut in half": lambda: encoded("JPEG", image_of())[:3000],
    "PNG cut in half": lambda: encoded("PNG", image_of())[:9000],
    "WebP cut in half": lambda: encoded("WEBP", image_of())[:2000],
    "TIFF cut in half": lambda: encoded("TIFF", image_of())[:9000],
    "no bytes": lambda: b"",
    "one byte": lambda: b"\xff",
    "HTML": lambda: b"<html>404 not found</html>",
    "text of a Git LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
    "more pixels than Pillow's limit": huge,
}
EITHER = {  # not all decoders are in every build of Pillow and OpenCV
    "GIF": lambda: encoded("GIF", image_of("P")),
    "animated GIF": lambda: encoded("GIF", image_of("P"), save_all=True, append_images=[image_of("P")]),
    "CMYK TIFF": lambda: encoded("TIFF", image_of("CMYK")),
    "1-bit TIFF": lambda: encoded("TIFF", image_of("1")),
    "greyscale TIFF with alpha": lambda: encoded("TIFF", image_of("LA")),
    "JPEG 2000": lambda: encoded("JPEG2000", image_of()),
    "icon": lambda: encoded("ICO", image_of()),
    "TGA": lambda: encoded("TGA", image_of()),
    "PPM": lambda: encoded("PPM", image_of()),
}


@pytest.mark.parametrize("kind", READ | REFUSED | EITHER)
def test_every_kind_of_image_is_read_or_refused_by_check_and_training(kind, data):
    """The file keeps its name .jpg: decoders go by contents. Headers are enough to know for these files."""
    content = (READ | REFUSED | EITHER)[kind]()
    names = "coco/train2017/train_000000.jpg", "ade/images/training/train_000000.jpg", "folders/train/a/x.jpg"
    for name in names:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).unlink(missing_ok=True)
        (data / name).write_bytes(content)
    reports = {
        "pretraining": check_images(data / "coco/train2017", decode=False),
        "detection": coco_report(data),
        "segmentation": check_ade(data / "ade", 4),
        "classification": check_class_folders(data / "folders", ["train"])[0],
    }
    folders = ClassFolder(str(data / "folders"), "train", TRANSFORM)
    read = {
        "pretraining": reads(
            lambda: (ImageFiles(find_images(data / "coco/train2017")).load_rgb(n) for n in range(COUNT))
        ),
        "detection": reads(lambda: coco_dataset(data)),
        "segmentation": reads(lambda: seg_dataset(data)),
        "classification": reads(lambda: (folders[0],)),
    }
    assert read == {task: report.ok for task, report in reports.items()}, "\n".join(map(str, reports.values()))
    if kind not in EITHER:
        assert set(read.values()) == {kind in READ}


def test_damage_that_headers_do_not_show_is_announced(data):
    """row_51: "ok" says what was not looked at."""
    file = data / "coco/train2017/train_000000.jpg"
    content = bytearray(encoded("JPEG", image_of()))
    middle = len(content) // 2
    content[middle : middle + 2] = b"\xff\xd9"
    file.unlink()
    file.write_bytes(content)
    report = coco_report(data)
    assert f"{COUNT} images" in report.unseen and "--decode" in str(report).splitlines()[0]
    assert not coco_report(data, decode=True).unseen


# COCO


def with_file_name(name: str):
    return lambda content: content["images"][0].update(file_name=name)


PRESENT = {
    "in a subfolder": "deep/er/x.jpg",
    "with a percent sign": "100%20.jpg",
    "with a blank": "a b.jpg",
    "not ASCII": "é中.jpg",
    "with two dots": "../train2017/x.jpg",
}
ABSENT = {
    "no such file": ("gone.jpg", "gone.jpg"),
    "backslashes": ("deep\\x.jpg", "deep/x.jpg is there: correct the file names"),
    "percent code": ("a%20b.jpg", "a b.jpg is there"),
    "another form of Unicode": ("e\u0301.jpg", "é.jpg is there"),
    "capital letters": ("X.JPG", "x.jpg is there"),
    "another end": ("x.png", "x.jpg is there"),
    "a folder": ("deep", "deep"),
    "an address": ("http://example.org/x.jpg", "http://example.org/x.jpg"),
    "half a character": ("\ud800.jpg", "\\ud800.jpg"),
}


def move_first_image(data: Path, name: str) -> None:
    target = data / "coco/train2017" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    (data / "coco/train2017/train_000000.jpg").rename(target)


@pytest.mark.parametrize("what", PRESENT)
def test_file_names_of_images_that_are_there(what, data):
    move_first_image(data, PRESENT[what])
    change_json(data / "coco/annotations/instances_train2017.json", with_file_name(PRESENT[what]))
    assert coco_report(data).ok and coco_objects(data) == coco_report(data).facts["annotations"]


def test_an_absolute_path_is_used_as_it_is(data):
    move_first_image(data, "x.jpg")
    name = str(data / "coco/train2017/x.jpg")
    change_json(data / "coco/annotations/instances_train2017.json", with_file_name(name))
    assert coco_report(data).ok and reads(lambda: coco_dataset(data))


@pytest.mark.parametrize("what", ABSENT)
def test_images_that_are_not_there_stop_training_before_its_first_batch(what, data):
    """row_49: before, only the batch that needed the image stopped."""
    name, says = ABSENT[what]
    for other in ("deep/x.jpg", "a b.jpg", "é.jpg", "x.jpg"):
        (data / "coco/train2017/deep").mkdir(exist_ok=True)
        shutil.copy(data / "coco/train2017/train_000000.jpg", data / "coco/train2017" / other)
    change_json(data / "coco/annotations/instances_train2017.json", with_file_name(name))
    with pytest.raises(DataError) as caught:
        coco_dataset(data)
    assert f"1 of {COUNT} images do not exist" in str(caught.value) and says in str(caught.value)
    report = coco_report(data)
    assert says in str(report) and report.facts["missing"] == 1


def test_skipped_images_may_be_absent(data):
    (data / "coco/train2017/train_000000.jpg").unlink()
    assert len(coco_dataset(data, on_error="skip")) == COUNT
    with pytest.raises(DataError, match=f"1 of {COUNT} images do not exist"):
        coco_dataset(data)


@pytest.mark.parametrize("size, ok", [((4000, 1), False), ((1, 4000), False), ((4000, 2), True), ((4000, 41), True)])
def test_images_too_narrow_to_be_resized_are_named(size, ok, data):
    """row_49, row_28"""
    file = data / "coco/train2017/train_000000.jpg"
    file.unlink()
    Image.new("RGB", size).save(file)

    def edit(content):
        content["images"][0].update(width=size[0], height=size[1])
        number = content["images"][0]["id"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != number]

    change_json(data / "coco/annotations/instances_train2017.json", edit)
    report = coco_report(data)
    assert report.ok == ok, str(report)
    assert ok or "1 images have no pixel left" in report.errors[0] and file.name in report.errors[0]
    assert any("over 100 times longer than wide" in note for note in report.notes) == (max(size) > 100 * min(size))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "gzip", "zip"])
def test_encodings_of_annotation_files(encoding, data):
    import gzip

    file = data / "coco/annotations/instances_train2017.json"
    text = file.read_text()
    if encoding in ("gzip", "zip"):
        file.write_bytes(gzip.compress(text.encode()) if encoding == "gzip" else b"PK\x03\x04rest")
        with pytest.raises(DataError, match="is (compressed|a zip archive).*unpack it"):
            coco_dataset(data)
        assert "unpack it" in coco_report(data).errors[0]
    else:
        file.write_bytes(text.encode(encoding))
        assert coco_report(data).ok and reads(lambda: coco_dataset(data))


def test_a_split_without_a_category_of_the_other_is_an_error(data):
    """row_3: training and evaluation need the same names; the order does not matter."""
    file = data / "coco/annotations/instances_val2017.json"
    change_json(file, lambda content: content["categories"].reverse())
    reports = [coco_report(data), coco_report(data, "val")]
    compare_categories(reports)
    assert reports[1].ok

    def remove(content):
        gone = content["categories"].pop()["id"]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] != gone]

    change_json(file, remove)
    reports = [coco_report(data), coco_report(data, "val")]
    compare_categories(reports)
    assert "1 categories of" in reports[1].errors[0] and "disc" in reports[1].errors[0]


def test_a_pipe_as_annotation_file_does_not_hang(data):
    """row_51"""
    file = data / "coco/annotations/instances_train2017.json"
    file.unlink()
    os.mkfifo(file)
    assert "is not a regular file" in coco_report(data).errors[0]


# Label maps


def labels_of(data: Path) -> Path:
    return data / "ade/annotations/training/train_000000.png"


def as_palette(labels: np.ndarray, **options) -> bytes:
    image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    image.putpalette(list(range(256)) * 3)
    return encoded("PNG", image, **options)


LABELS = {
    "palette": (as_palette, True),
    "palette with transparency": (
        lambda a: encoded("PNG", Image.open(io.BytesIO(as_palette(a))), transparency=0),
        True,
    ),
    "16 bits": (lambda a: encoded("PNG", Image.fromarray(a.astype(np.uint16))), True),
    "1 bit": (lambda a: encoded("PNG", Image.fromarray(a > 1)), True),
    "TIFF": (lambda a: encoded("TIFF", Image.fromarray(a)), True),
    "16 bits above 255": (lambda a: encoded("PNG", Image.fromarray(a.astype(np.uint16) + 256)), False),
    "colours": (lambda a: encoded("PNG", Image.fromarray(np.stack([a] * 3, -1))), False),
    "alpha": (lambda a: encoded("PNG", Image.fromarray(a).convert("LA")), False),
    "JPEG": (lambda a: encoded("JPEG", Image.fromarray(a), quality=100), False),
    "WebP": (lambda a: encoded("WEBP", Image.fromarray(a), lossless=True), False),
    "a class too many": (lambda a: encoded("PNG", Image.fromarray(a + 4)), False),
    "another size": (lambda a: encoded("PNG", Image.fromarray(a[:-1])), False),
    "no bytes": (lambda a: b"", False),
}


@pytest.mark.parametrize("what", LABELS)
def test_label_maps_are_read_or_refused_by_check_and_training(what, data):
    write, right = LABELS[what]
    labels = np.asarray(Image.open(labels_of(data)))
    content = write(labels)
    labels_of(data).unlink()
    labels_of(data).write_bytes(content)
    report = check_ade(data / "ade", 4)
    assert report.ok == reads(lambda: seg_dataset(data)) == right, str(report)


def test_label_maps_in_jpeg_are_refused_even_if_their_values_are_classes(data):
    """Compression changes labels at the edges of regions, often into other classes."""
    for split in ("training", "validation"):
        for file in (data / f"ade/annotations/{split}").iterdir():
            content = encoded("JPEG", Image.open(file), quality=95)
            file.unlink()
            file.write_bytes(content)
    assert "a JPEG, which changes labels" in str(check_ade(data / "ade", 150))


def test_nested_folders_and_loops_of_links_are_listed_once_by_check_and_training(data):
    """row_11: mmseg lists an image below a loop of links about forty times."""
    for kind, end in (("images", "jpg"), ("annotations", "png")):
        folder = data / f"ade/{kind}/training"
        (folder / "deep").mkdir()
        (folder / f"train_000000.{end}").rename(folder / f"deep/x.{end}")
        (folder / "deep/loop").symlink_to(folder)
        (folder / "self").symlink_to(folder / "self")
    dataset = seg_dataset(data)
    assert len(dataset) == COUNT and reads(lambda: dataset)
    report = check_ade(data / "ade", 4)
    assert report.ok and report.facts["pairs"]["training"] == COUNT


def test_images_keep_the_order_of_mmseg(data):
    from mmseg.datasets import BaseSegDataset

    folder = data / "ade/images/training"
    for name in ("a/b.jpg", "a-b.jpg", "a b.jpg", "B.jpg", "é.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "train_000000.jpg", folder / name)
    options = dict(pipeline=[], data_root=f"{data}/ade/")
    ours = seg_dataset(data, **options)
    theirs = BaseSegDataset(
        data_root=f"{data}/ade/",
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        metainfo=ours.metainfo,
        reduce_zero_label=True,
        serialize_data=False,
    )
    assert [ours.get_data_info(n) for n in range(len(ours))] == [theirs.get_data_info(n) for n in range(len(theirs))]


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.webp", ".hidden.jpg", ".cache/a.jpg", "__MACOSX/._a.jpg"])
def test_images_that_segmentation_leaves_out_are_named(name, data, caplog):
    """row_15"""
    file = data / "ade/images/training" / name
    file.parent.mkdir(exist_ok=True)
    shutil.copy(data / "ade/images/training/train_000000.jpg", file)
    with caplog.at_level("INFO", logger="arm_images"):
        assert len(seg_dataset(data)) == COUNT
    assert f"{COUNT} images used" in caplog.text and str(file) in caplog.text
    report = check_ade(data / "ade", 4)
    assert report.ok and any(str(file) in note for note in report.notes)


def test_an_image_without_a_label_map_stops_training_before_its_first_batch(data):
    labels_of(data).rename(labels_of(data).with_name("other.png"))
    with pytest.raises(DataError, match=f"1 of {COUNT} images have no label map, first .*train_000000.jpg"):
        seg_dataset(data)
    errors = check_ade(data / "ade", 4).errors
    assert len(errors) == 2 and "train_000000" in errors[0] and "other" in errors[1]
    assert len(seg_dataset(data, pipeline=[dict(type="LoadImage")])) == COUNT  # images alone


def test_an_image_that_is_a_broken_link_is_named(data, caplog):
    file = data / "ade/images/training/train_000000.jpg"
    file.unlink()
    file.symlink_to("/nowhere")
    with caplog.at_level("WARNING", logger="arm_images"):
        assert len(seg_dataset(data)) == COUNT - 1
    assert "broken links" in caplog.text and f"label maps without an image, first {labels_of(data)}" in caplog.text
    assert "1 label maps without an image" in check_ade(data / "ade", 4).errors[0]


def test_other_ends_of_names_and_labels_from_zero(data):
    for split in ("training", "validation"):
        for file in (data / f"ade/images/{split}").iterdir():
            file.rename(file.with_suffix(".jpeg"))
        for file in (data / f"ade/annotations/{split}").iterdir():
            labels = np.asarray(Image.open(file)) - 1
            file.unlink()
            Image.fromarray(labels).save(file.with_name(f"{file.stem}_labels.png"))
    names = dict(img_suffix=".jpeg", seg_map_suffix="_labels.png")
    assert not check_ade(data / "ade", 4).ok
    assert "hold something other than 0..2" in str(check_ade(data / "ade", 3, reduce_zero_label=False, **names))
    assert check_ade(data / "ade", 4, reduce_zero_label=False, **names).ok
    dataset = seg_dataset(data, reduce_zero_label=False, **names)
    assert len(dataset) == COUNT and reads(lambda: dataset)
    options = ["--num-classes", 4, "--img-suffix", ".jpeg", "--seg-map-suffix", "_labels.png", "--no-reduce-zero-label"]
    assert call_tool("prepare_data.py", "check", "ade", data / "ade", *options) == 0


def test_a_list_of_names_is_read_by_check_and_training(data, caplog):
    names = data / "ade/names.txt"
    names.write_text("train_000002\r\n\ntrain_000000\n", encoding="utf-8-sig")
    with caplog.at_level("WARNING", logger="arm_images"):
        dataset = seg_dataset(data, ann_file="names.txt")
    files = [Path(dataset.get_data_info(n)["img_path"]).stem for n in range(len(dataset))]
    assert files == ["train_000002", "train_000000"] and reads(lambda: dataset)
    assert "2 images used" in caplog.text and f"images that {names} does not list" in caplog.text
    options = ["--num-classes", 4, "--splits", "training", "--list", names]
    assert call_tool("prepare_data.py", "check", "ade", data / "ade", *options) == 0
    names.write_text("train_000002.jpg\n")
    with pytest.raises(DataError, match="lists 1 images that do not exist, first .*train_000002.jpg.jpg"):
        seg_dataset(data, ann_file="names.txt")
    assert "train_000002.jpg.jpg" in check_ade(data / "ade", 4, ["training"], listed=names).errors[0]


def test_images_and_label_maps_in_one_folder(data):
    folder = data / "ade/images/training"
    for file in list(folder.iterdir()):
        Image.open(file).save(file.with_suffix(".png"))
        labels = data / f"ade/annotations/training/{file.stem}.png"
        labels.rename(folder / f"{file.stem}_labels.png")
        file.unlink()
    options = dict(img_suffix=".png", seg_map_suffix="_labels.png")
    prefix = dict(img_path="images/training", seg_map_path="images/training")
    dataset = seg_dataset(data, data_prefix=prefix, **options)
    assert len(dataset) == COUNT and reads(lambda: dataset)


def test_binary_maps_of_0_and_255_are_refused_with_labels_from_zero_too(data):
    """row_5: 255 is ignored, so that every pixel that counts would be of class 0."""
    for file in (data / "ade/annotations/training").iterdir():
        labels = np.asarray(Image.open(file))
        file.unlink()
        Image.fromarray(np.where(labels > 1, 255, 0).astype(np.uint8)).save(file)
    report = check_ade(data / "ade", 4, ["training"], reduce_zero_label=False)
    assert "255 is ignored; a map of 0 and 255 must be stored" in report.errors[0]


# Class folders


@pytest.fixture
def folders(tmp_path) -> Path:
    for n, name in enumerate(("train/ant/a.jpg", "train/ant/deep/b.png", "train/bee/c.webp", "val/ant/d.jpg")):
        file = tmp_path / "folders" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (n, 0, 0)).save(file)
    return tmp_path / "folders"


def class_errors(folders: Path) -> list[str]:
    return [error for report in check_class_folders(folders) for error in report.errors]


def test_class_folders_without_faults_pass(folders):
    """row_51: check knows every source that training knows."""
    train, val = check_class_folders(folders)
    assert train.ok and val.ok, f"{train}\n{val}"
    assert train.facts["per_class"] == dict(ant=2, bee=1) and val.facts["per_class"] == dict(ant=1, bee=0)
    assert any("classes of" in note and "bee" in note for note in val.notes)
    assert call_tool("prepare_data.py", "check", "classes", folders) == 0
    assert call_tool("prepare_data.py", "check", "classes", folders, "--decode", "--splits", "train") == 0


def add(folders: Path, name: str) -> Path:
    file = folders / name
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folders / "train/ant/a.jpg", file)
    return file


def link(folders: Path, name: str, target: str) -> None:
    (folders / name).symlink_to(folders / target)


FOLDER_FAULTS = {
    "an empty class": (lambda f: (f / "train/cow").mkdir(), "cow is a class without an image"),
    "two empty classes": (
        lambda f: [(f / "train" / name).mkdir() for name in ("cow", "dog")],
        "cow is a class without an image .*1 more like it",
    ),
    "a class of an archive": (
        lambda f: add(f, "train/cow/a.zip"),
        "cow is a class without an image .*compressed archives",
    ),
    "a class that training lacks": (lambda f: add(f, "val/wasp/a.jpg"), "wasp is not a class"),
    "a class folder linked twice": (lambda f: link(f, "train/cow", "train/bee"), "bee and .*cow are one folder"),
    "a folder linked into another class": (
        lambda f: link(f, "train/bee/more", "train/ant/deep"),
        "bee shares a folder with another class",
    ),
    "no validation folder": (lambda f: shutil.rmtree(f / "val"), "val does not exist"),
}


@pytest.mark.parametrize("what", FOLDER_FAULTS)
def test_faults_of_class_folders_are_found_by_check_and_training(what, folders):
    plant, says = FOLDER_FAULTS[what]
    plant(folders)
    with pytest.raises(DataError, match=says) as caught:
        for split in ("train", "val"):
            ClassFolder(str(folders), split, TRANSFORM)
    assert class_errors(folders) == [str(caught.value)]
    assert call_tool("prepare_data.py", "check", "classes", folders) == 1


@pytest.mark.parametrize(
    "name",
    ["train/.DS_Store", "train/x.jpg", "train/.ipynb_checkpoints/a.jpg", "train/__MACOSX/ant/._a.jpg",
     "train/ant/Thumbs.db", "train/ant/.a.jpg", "train/ant/.cache/a.jpg", "train/ant/a.gif", "train/ant/x.tar"],
)  # fmt: skip
def test_what_class_folders_leave_out_is_named(name, folders, caplog):
    """row_12, row_15. Hidden folders do not count as classes when the heads are compared with the data."""
    from mmengine.config import Config

    add(folders, name)
    with caplog.at_level("WARNING", logger="arm_images"):
        dataset = ClassFolder(str(folders), "train", TRANSFORM)
    assert len(dataset) == 3 and dataset.classes == ["ant", "bee"]
    left_out = str(folders / "/".join(name.split("/")[: 3 if name.startswith("train/ant/") else 2]))
    assert left_out in caplog.text and "3 images used" in caplog.text
    report = check_class_folders(folders)[0]
    assert report.ok and any(left_out in note for note in report.notes)
    check_num_classes(
        Config(
            dict(
                model=dict(num_classes=2),
                train_dataloader=dict(dataset=dict(type="ClassFolder", data_root=str(folders), split="train")),
            )
        )
    )


def test_links_in_loops_do_no_harm_among_class_folders(folders):
    link(folders, "train/ant/up", "train/ant")
    link(folders, "train/ant/self", "train/ant/self")
    link(folders, "train/ant/all", "train")  # its images of the other classes are not ants
    link(folders, "train/bee/ants", "train/ant")
    assert ClassFolder(str(folders), "train", TRANSFORM).labels == [0, 0, 1] and not class_errors(folders)


def test_a_name_that_is_not_unicode_can_be_printed(folders, capsys):
    with open(os.fsencode(folders) + b"/train/ant/\xff.gif", "wb"):
        pass
    assert call_tool("prepare_data.py", "check", "classes", folders) == 0
    assert "\\udcff.gif" in capsys.readouterr().out
    str(ClassFolder(str(folders), "train", TRANSFORM).files).encode("utf-8", "backslashreplace")


def test_check_of_imagenet_sets(tmp_path):
    for name in ("0/a.jpeg", "7/b.jpeg", "7/.c.jpeg"):
        file = tmp_path / "imagenetv2-matched-frequency-format-val" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(file)
    report = check_imagenet_set("v2", tmp_path)
    assert report.ok and report.facts == dict(images=2, published=10_000, unreadable=0)
    assert "sketch does not exist" in check_imagenet_set("sketch", tmp_path).errors[0]
    assert call_tool("prepare_data.py", "check", "imagenet", tmp_path, "--sets", "v2") == 0


# Archives


def test_links_in_archives_are_named(tmp_path):
    """row_51: tar writes a file that it has seen before as a link."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("a.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in "abc":
            tar.add(tmp_path / f"{name}.png", arcname=f"{name}.png")
    assert len(find_images(tmp_path / "x.tar")) == 1
    report = check_images(tmp_path / "x.tar")
    assert report.ok and any("left out 2 links" in note and "b.png" in note for note in report.notes)


@pytest.mark.parametrize(
    "line, says",
    [
        ("a b.png 7", "a b.png is there: a line holds one path and nothing else"),
        ("a b.png,7", "a line holds one path"),
        ("A B.PNG", "a b.png is there: correct the list"),
        ("deep\\a.png", "deep/a.png is there: correct the list"),
        ("a b", "a b.png is there"),
        (".", "set prefix"),
        ("list.txt/x", "set prefix"),
    ],
)
def test_lines_of_lists_that_are_no_paths_get_a_remedy(line, says, tmp_path):
    """row_27"""
    for name in ("a b.png", "deep/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text(f"{line}\n")
    with pytest.raises(DataError, match="lists 1 files that do not exist") as caught:
        find_images(tmp_path / "list.txt")
    assert says in str(caught.value)
    assert check_images(tmp_path / "list.txt").errors == [str(caught.value)]


def test_hidden_files_are_left_out_of_pretraining(tmp_path):
    for name in ("a.png", ".b.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/._a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    assert find_images(tmp_path) == [tmp_path / "a.png"]
    notes = "\n".join(check_images(tmp_path).notes)
    assert "left out 2 hidden files" in notes and "left out 1 notes of macOS" in notes
