"""Images for pretraining: where they come from, and what happens to one that cannot be read."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arm_images.read import ImageFiles
from arm_pretrain import ImageCrops
from helpers.runs import logged, pretrain_config, train


@pytest.fixture
def picture_folder(tmp_path):
    """Nested folders with an RGB, a greyscale and a palette picture, and something that is no picture."""
    rng = np.random.default_rng(0)
    (tmp_path / "b" / "c").mkdir(parents=True)
    rgb = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
    rgb.save(tmp_path / "one.png")
    rgb.convert("L").save(tmp_path / "b" / "two.jpg")
    rgb.convert("P").save(tmp_path / "b" / "c" / "three.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_folders_and_lists(picture_folder):
    dataset = ImageCrops(str(picture_folder), size=(32, 48))
    assert sorted(f.name for f in dataset.files) == ["one.png", "three.PNG", "two.jpg"]
    for i in range(3):
        item = dataset[i]["inputs"]
        assert item.shape == (3, 32, 48) and item.dtype == torch.uint8
    listed = picture_folder / "list.txt"
    listed.write_text("one.png\nb/two.jpg\n")
    assert len(ImageCrops(str(listed))) == 2
    assert len(ImageCrops(str(listed), prefix=str(picture_folder))) == 2


def test_bad_data_is_named(picture_folder, capsys):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        ImageCrops(str(picture_folder / "nowhere"))
    with pytest.raises(ValueError, match="no image"):
        (picture_folder / "empty").mkdir()
        ImageCrops(str(picture_folder / "empty"))
    listed = picture_folder / "list.txt"
    listed.write_text("one.png\ngone.png\n")
    with pytest.raises(FileNotFoundError, match="1 files that do not exist, first .*gone.png"):
        ImageCrops(str(listed))


def test_unreadable_image_is_fatal_or_left_out_but_never_silent(picture_folder, caplog):
    broken = picture_folder / "a_broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(OSError, match="cannot read .*a_broken.jpg.*on_error='skip'"):
        ImageCrops(str(picture_folder))[0]
    messages = []
    import arm_pretrain.data

    original, arm_pretrain.data.print_log = arm_pretrain.data.print_log, lambda text, **_: messages.append(text)
    try:
        item = ImageCrops(str(picture_folder), on_error="skip", size=32)[0]
    finally:
        arm_pretrain.data.print_log = original
    assert item["inputs"].shape == (3, 32, 32)
    assert len(messages) == 1 and "a_broken.jpg" in messages[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_files_are_counted_and_listed_up_to_a_limit(workers, picture_folder, tmp_path_factory):
    work = tmp_path_factory.mktemp("runs")
    broken = [picture_folder / f"broken{i}.jpg" for i in range(2)]
    for file in broken:
        file.write_bytes(b"\xff\xd8\xff broken")
    cfg = pretrain_config(picture_folder, **{"train_cfg.max_epochs": 2, "train_dataloader.num_workers": workers})
    cfg.train_dataloader.dataset.update(path=str(picture_folder), on_error="skip", max_skipped=2)
    cfg.train_dataloader.batch_size = 5
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != "ReconstructionHook"]  # it reads them too
    train(cfg, work / "enough")
    assert (work / "enough/skipped_files.txt").read_text().split() == list(map(str, broken))
    cfg.train_dataloader.dataset.max_skipped = 1
    with pytest.raises(OSError, match="2 of 5 images cannot be read, the last .*broken.*max_skipped=1"):
        train(cfg, work / "too_many")


def test_hugging_face_data_set(picture_folder, tmp_path_factory):
    """Saved with encoded bytes, and with the names of files; the same crops as from the files."""
    datasets = pytest.importorskip("datasets")
    saved = tmp_path_factory.mktemp("saved")
    files = [str(picture_folder / name) for name in ("one.png", "b/two.jpg", "b/c/three.PNG")]
    features = datasets.Features(picture=datasets.Image(), label=datasets.Value("int64"))
    rows = dict(picture=files, label=[0, 1, 2])
    named = datasets.Dataset.from_dict(rows, features=features)
    rows["picture"] = [dict(bytes=Path(file).read_bytes(), path=None) for file in files]
    named.save_to_disk(saved / "named")
    empty = datasets.Dataset.from_dict(dict(picture=[None, files[0]], label=[0, 1]), features=features)
    empty.save_to_disk(saved / "empty")
    with pytest.raises(OSError, match="cannot read .*empty, row 0 .no image"):
        ImageCrops(str(saved / "empty"), size=32)[0]
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features=features)).save_to_disk(saved / "splits")
    loose = [ImageFiles(map(Path, files)).load_rgb(i)[0] for i in range(3)]
    for folder in ("named", "splits/train"):
        crops = ImageCrops(str(saved / folder), size=32, augment=False)
        assert len(crops) == 3
        for i in range(3):
            assert np.array_equal(np.asarray(crops.files.load_rgb(i)[0]), np.asarray(loose[i]))
    with pytest.raises(ValueError, match="has the splits train; give one of them: .*splits/train"):
        ImageCrops(str(saved / "splits"))
    named.remove_columns("picture").save_to_disk(saved / "labels")
    with pytest.raises(ValueError, match="has 0 columns of images among label"):
        ImageCrops(str(saved / "labels"))


def test_a_rectangular_centre_crop_is_filled(tmp_path):
    Image.new("RGB", (40, 100), "white").save(tmp_path / "tall.png")
    assert (ImageCrops(str(tmp_path), size=(32, 64), augment=False)[0]["inputs"] == 255).all()


def test_images_of_every_mode_come_out_right(tmp_path):
    """One picture, dark on the left and bright on the right, in all the ways that files hold one."""
    grey = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    rgb = Image.fromarray(np.stack([grey] * 3, 2))
    rgb.save(tmp_path / "rgb.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(tmp_path / "palette.png")
    rgb.convert("RGBA").save(tmp_path / "alpha.png")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: to be turned by a quarter
    rgb.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=98)
    dataset = ImageCrops(str(tmp_path), size=(48, 64), augment=False)
    assert len(dataset) == 7
    for i, file in enumerate(dataset.files):
        image = dataset[i]["inputs"].float()
        assert image.shape == (3, 48, 64), file
        assert (image.mean((0, 1)) - torch.linspace(0, 255, 64)).abs().max() < 6, file


def test_tar_shards(picture_folder, tmp_path_factory):
    """The same crops as from the files; anything else in an archive is passed by."""
    shards = tmp_path_factory.mktemp("shards")
    for name, files in (("a.tar", ["one.png", "notes.txt"]), ("b.tar", ["b/two.jpg", "b/c/three.PNG"])):
        with tarfile.open(shards / name, "w") as tar:
            for file in files:
                tar.add(picture_folder / file, arcname=file)
    packed, loose = (ImageCrops(str(path), size=32, augment=False) for path in (shards, picture_folder))
    images = {Path(item["data_samples"]).name: item["inputs"] for item in (loose[i] for i in range(3))}
    assert len(packed) == 3
    for i in range(3):
        item = packed[i]
        assert torch.equal(item["inputs"], images[Path(item["data_samples"]).name])
    assert packed[0]["data_samples"] == str(shards / "a.tar/one.png")
    assert len(ImageCrops(str(shards / "b.tar"))) == 2
    copies = pickle.loads(pickle.dumps(packed))  # to workers that are started anew
    assert torch.equal(copies[2]["inputs"], packed[2]["inputs"])
    with tarfile.open(shards / "c.tar", "w:gz") as tar:
        tar.add(picture_folder / "one.png", arcname="one.png")
    with pytest.raises(ValueError, match="c.tar is no uncompressed tar archive .*tar -cf"):
        ImageCrops(str(shards))
    (shards / "c.tar").unlink()
    whole = (shards / "b.tar").read_bytes()
    (shards / "b.tar").write_bytes(whole[:600])  # the first picture is cut off
    with pytest.raises((OSError, ValueError), match="b.tar"):
        [ImageCrops(str(shards / "b.tar"))[i] for i in range(2)]


def test_the_loaders_own_speed_is_logged(picture_folder, tmp_path_factory):
    work = tmp_path_factory.mktemp("runs") / "run"
    cfg = pretrain_config(picture_folder, **{"train_cfg.max_epochs": 2, "train_dataloader.batch_size": 3})
    cfg.train_dataloader.dataset.path = str(picture_folder)
    train(cfg, work)
    for line in logged(work).values():
        assert line["loader_images_per_s"] > line["images_per_s"] > 0
        assert 1 <= line["loader_images_per_s"] * line["data_time"] / 3 < 100  # the loop's wait holds the work
