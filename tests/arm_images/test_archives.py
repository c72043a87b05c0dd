"""Images inside tar archives and Hugging Face data sets."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from arm_images.errors import DataError
from arm_images.find import find_images
from arm_images.read import ImageFiles

NAMES = ("one.png", "b/two.jpg", "b/c/three.PNG")


def pixels(files: list) -> list[np.ndarray]:
    files = ImageFiles(files)
    return [np.asarray(files.load_rgb(i)[0]) for i in range(len(files))]


def equal(one: list[np.ndarray], two: list[np.ndarray]) -> bool:
    return len(one) == len(two) and all(np.array_equal(a, b) for a, b in zip(one, two))


@pytest.fixture
def shards(image_folder, tmp_path) -> Path:
    """Two archives with the three images and a text file."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, files in (("a.tar", ["one.png", "notes.txt"]), ("b.tar", ["b/two.jpg", "b/c/three.PNG"])):
        with tarfile.open(folder / name, "w") as tar:
            for file in files:
                tar.add(image_folder / file, arcname=file)
    return folder


def test_images_of_archives_are_those_of_the_files(shards, image_folder):
    """They come in the archives' order; other files in an archive are ignored."""
    files = find_images(shards)
    assert [str(file) for file in files] == [
        str(shards / name) for name in ("a.tar/one.png", "b.tar/b/two.jpg", "b.tar/b/c/three.PNG")
    ]
    loose = pixels([image_folder / name for name in NAMES])
    assert equal(pixels(files), loose)
    assert equal(pixels(find_images(shards / "b.tar")), loose[1:])
    assert equal(pixels(pickle.loads(pickle.dumps(files))), loose)  # as sent to spawned workers


def test_images_and_archives_of_one_folder(shards, image_folder):
    (shards / "a.tar").rename(image_folder / "a.tar")
    assert [file.name for file in find_images(image_folder)] == ["three.PNG", "two.jpg", "one.png", "one.png"]


def test_broken_archives_are_named(shards, image_folder):
    with tarfile.open(shards / "c.tar", "w:gz") as tar:
        tar.add(image_folder / "one.png", arcname="one.png")
    with pytest.raises(DataError, match="c.tar is not an uncompressed tar archive .*tar -cf"):
        find_images(shards)
    whole = (shards / "b.tar").read_bytes()
    (shards / "b.tar").write_bytes(whole[:600])  # within the first image
    with pytest.raises(DataError, match="b.tar"):
        pixels(find_images(shards / "b.tar"))


def test_hugging_face_data_sets(image_folder, tmp_path):
    """Their images are saved as encoded bytes or as file names."""
    datasets = pytest.importorskip("datasets")
    saved = tmp_path / "saved"
    files = [str(image_folder / name) for name in NAMES]
    features = datasets.Features(picture=datasets.Image(), label=datasets.Value("int64"))
    rows = dict(picture=files, label=[0, 1, 2])
    named = datasets.Dataset.from_dict(rows, features=features)
    rows["picture"] = [dict(bytes=Path(file).read_bytes(), path=None) for file in files]
    named.save_to_disk(saved / "named")
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features=features)).save_to_disk(saved / "splits")
    for folder in ("named", "splits/train"):
        assert equal(pixels(find_images(saved / folder)), pixels(list(map(Path, files))))
    with pytest.raises(DataError, match="has the splits train; give one of them: .*splits/train"):
        find_images(saved / "splits")
    named.remove_columns("picture").save_to_disk(saved / "labels")
    with pytest.raises(DataError, match="has 0 columns of images among label"):
        find_images(saved / "labels")
    empty = datasets.Dataset.from_dict(dict(picture=[None, files[0]], label=[0, 1]), features=features)
    empty.save_to_disk(saved / "empty")
    with pytest.raises(DataError, match="cannot read .*empty, row 0 .no image"):
        pixels(find_images(saved / "empty"))
