"""Crops for pretraining, and runs on data with unreadable files."""

import copy
import gc
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from arm_images.errors import DataError
from arm_pretrain import ImageCrops
from arm_toolkit.datasets.samplers import SampleIndex
from tests.helpers.runs import logged, pretrain_config, train


@pytest.fixture
def image_folder(tmp_path):
    """Three images of 60 x 80 pixels in nested folders."""
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("one.png", "three.png", "b/two.jpg"):
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def broken_folder(image_folder):
    """The same folder with two unreadable files, the first two in sorted order."""
    for name in ("a0.jpg", "a1.jpg"):
        (image_folder / name).write_bytes(b"\xff\xd8\xff broken")
    return image_folder


def test_items_are_crops_and_the_names_of_their_files(image_folder):
    dataset = ImageCrops(str(image_folder), size=(32, 48))
    assert len(dataset) == 3
    for i, name in enumerate(("b/two.jpg", "one.png", "three.png")):
        item = dataset[i]
        assert item["inputs"].shape == (3, 32, 48) and item["inputs"].dtype == torch.uint8
        assert item["data_samples"] == str(image_folder / name)
    (image_folder / "list.txt").write_text("one.png\n")
    assert len(ImageCrops(str(image_folder / "list.txt"), prefix=str(image_folder / "."))) == 1


def test_a_crop_is_a_function_of_the_seed_of_its_index(image_folder):
    dataset = ImageCrops(str(image_folder), size=32)
    state = torch.get_rng_state()
    one, two, other = (dataset[SampleIndex(1, seed)]["inputs"] for seed in (5, 5, 6))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())  # other random numbers are not affected


def test_without_augmentation_the_largest_centre_crop_fills_the_size(tmp_path):
    image = Image.new("RGB", (40, 100), "black")
    image.paste("white", (0, 36, 40, 64))  # the centre crop of this shape is 40 x 20, and some margin for bicubic
    image.save(tmp_path / "tall.png")
    assert (ImageCrops(str(tmp_path), size=(32, 64), augment=False)[0]["inputs"] == 255).all()


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_record_skipped_files_in_the_data_set_of_the_main_process(method, broken_folder):
    dataset = copy.deepcopy(ImageCrops(str(broken_folder), size=32, on_error="skip"))
    loader = DataLoader(dataset, batch_size=1, num_workers=2, multiprocessing_context=method)
    names = [batch["data_samples"][0] for batch in loader]
    assert len(names) == 5 and names[0] == names[1] == names[2] == str(broken_folder / "b/two.jpg")
    assert dataset.files.skipped.tolist() == [True, True, False, False, False]


def test_a_pickled_data_set_gives_the_same_items(broken_folder):
    dataset = ImageCrops(str(broken_folder), size=32, on_error="skip", augment=False)
    first = dataset[0]["inputs"]
    other = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(other[0]["inputs"], first) and other.files.skipped.tolist() == dataset.files.skipped.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_logs_and_lists_skipped_files_and_stops_at_the_limit(workers, broken_folder, tmp_path):
    broken = [broken_folder / name for name in ("a0.jpg", "a1.jpg")]
    cfg = pretrain_config(broken_folder, **{"train_cfg.max_epochs": 2, "train_dataloader.num_workers": workers})
    cfg.train_dataloader.dataset.update(path=str(broken_folder), on_error="skip", max_skipped=2)
    cfg.train_dataloader.batch_size = 5
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != "ReconstructionHook"]  # it reads them too
    train(cfg, tmp_path / "enough")
    assert (tmp_path / "enough/skipped_files.txt").read_text().split() == list(map(str, broken))
    (log,) = (tmp_path / "enough").glob("*/*.log")
    warned = re.findall(r"- arm_images - WARNING - skipped (\S+):", log.read_text())
    assert set(warned) == set(map(str, broken))
    cfg.train_dataloader.dataset.max_skipped = 1
    with pytest.raises(DataError, match="2 of 5 images cannot be read, the last .*max_skipped=1"):
        train(cfg, tmp_path / "too_many")
    gc.collect()  # stops the workers of the failed run now, not during the next test


def test_unusable_data_is_one_line_that_names_the_loader(shapes, tmp_path):
    (tmp_path / "empty").mkdir()
    cfg = pretrain_config(shapes)
    cfg.train_dataloader.dataset.path = str(tmp_path / "empty")
    with pytest.raises(DataError, match="^train_dataloader: no images under .*empty"):
        train(cfg, tmp_path / "run")


def test_the_loaders_own_speed_is_logged(image_folder, tmp_path):
    cfg = pretrain_config(image_folder, **{"train_cfg.max_epochs": 2, "train_dataloader.batch_size": 3})
    cfg.train_dataloader.dataset.path = str(image_folder)
    train(cfg, tmp_path / "run")
    for line in logged(tmp_path / "run").values():
        assert line["loader_images_per_s"] > line["images_per_s"] > 0
        assert 1 <= line["loader_images_per_s"] * line["data_time"] / 3 < 100  # the loop's wait includes the work
