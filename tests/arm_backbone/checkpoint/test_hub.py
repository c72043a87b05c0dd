"""`hf://` names: the hub's cache offline, a server on this machine, and one line for all that is missing."""

import hashlib
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from arm_backbone.checkpoint.errors import CheckpointError
from arm_backbone.checkpoint.files import read_checkpoint
from arm_backbone.checkpoint.hub import local_path, parse_name
from tests.helpers.hub_server import Hub, serve, use

COMMIT = "0123456789" * 4
WEIGHTS = save(dict(a=torch.arange(3.0)))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve(Hub(files={"me/model": {"model.safetensors": WEIGHTS, "sub/a.pth": b"a", "evil.py": b"b"}})) as running:
        use(monkeypatch, tmp_path / "cache", running.url)
        yield running


def cached(folder: Path, repo: str, files: dict[str, bytes]) -> Path:
    """The hub's cache of one repository, as huggingface_hub lays it out."""
    place = folder / f"models--{repo.replace('/', '--')}"
    for name, content in files.items():
        blob, link = place / "blobs" / hashlib.sha1(content).hexdigest(), place / "snapshots" / COMMIT / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(Path("../" * (2 + name.count("/"))) / "blobs" / blob.name)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(COMMIT)
    return place / "snapshots" / COMMIT


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf://me/model", ("me/model", None, None)),
        ("hf://me/model/", ("me/model", None, None)),
        ("hf:/me/model", ("me/model", None, None)),  # through pathlib
        ("hf://me/model@v1", ("me/model", None, "v1")),
        ("hf://me/model@v1/sub/a.pth", ("me/model", "sub/a.pth", "v1")),
        ("hf://me/model/sub/a.pth@feature/x", ("me/model", "sub/a.pth", "feature/x")),
        ("hf://me/model@refs/pr/3", ("me/model", None, "refs/pr/3")),
        ("hf://me/model@feature%2Fx/a.pth", ("me/model", "a.pth", "feature/x")),
    ],
)
def test_names_are_taken_apart(name, parts):
    assert tuple(parse_name(name)) == parts


@pytest.mark.parametrize("name", ["hf://", "hf://me", "hf://me/", "hf://me/model@", "hf://me/model@a/b.pth@c"])
def test_other_names_are_refused(name):
    with pytest.raises(CheckpointError, match="give hf://OWNER/NAME"):
        local_path(name)


@pytest.mark.parametrize("path", ["a.pth", "/tmp/hf:", "hf/me/model", "https://host/a.pth"])
def test_other_paths_stay_as_they_are(path):
    assert local_path(path) == path


def test_a_file_is_downloaded_once(hub):
    path = Path(local_path("hf://me/model/sub/a.pth"))
    assert path.read_bytes() == b"a"
    assert local_path("hf://me/model/sub/a.pth@main") == str(path)
    assert len([request for request in hub.requests if re.match("GET .*/resolve/.*/sub/a.pth", request)]) == 1


def test_a_repository_is_downloaded_without_other_files(hub):
    folder = Path(local_path("hf://me/model"))
    assert {path.name for path in folder.iterdir()} == {"model.safetensors"}
    assert torch.equal(read_checkpoint("hf://me/model")["state_dict"]["a"], torch.arange(3.0))
    assert torch.equal(read_checkpoint(Path("hf://me/model/model.safetensors"))["state_dict"]["a"], torch.arange(3.0))


def test_the_cache_serves_offline(tmp_path, monkeypatch):
    use(monkeypatch, tmp_path, offline=True)
    folder = cached(tmp_path, "me/model", {"model.safetensors": WEIGHTS, "sub/a.pth": b"a"})
    assert local_path("hf://me/model") == str(folder)
    assert local_path("hf://me/model/sub/a.pth") == str(folder / "sub/a.pth")
    assert local_path(f"hf://me/model/sub/a.pth@{COMMIT}") == str(folder / "sub/a.pth")
    assert torch.equal(read_checkpoint("hf://me/model")["state_dict"]["a"], torch.arange(3.0))


MISSING = {
    "hf://me/model/b.pth": "hf://me/model/b.pth: the repository has no such file",
    "hf://me/model/a.pth@v2": r"hf://me/model/a.pth \(revision v2\): .*has no such revision",
    "hf://me/model@v2": r"hf://me/model \(revision v2\): .*has no such revision",
    "hf://you/model": "hf://you/model: .*/you/model does not exist or is private",
    "hf://you/model/a.pth": "hf://you/model/a.pth: .* does not exist or is private",
    "hf://closed/model": "hf://closed/model: access is restricted; ask for it on .*closed/model",
    "hf://me/other": "hf://me/other: the repository has neither config.json nor model.safetensors; name a file",
    "hf://me--x/model": "hf://me--x/model: ",
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_one_line(name, hub):
    hub.refused["closed/model"] = "GatedRepo"
    hub.files["me/other"] = {"a.pth": b"a"}
    with pytest.raises(CheckpointError, match=MISSING[name]) as error:
        local_path(name)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["hf://me/model", "hf://me/model/a.pth"])
def test_offline_is_one_line(name, tmp_path, monkeypatch):
    use(monkeypatch, tmp_path, offline=True)
    with pytest.raises(CheckpointError, match=f"{name} is not in the cache {tmp_path}, and HF_HUB_OFFLINE is set") as e:
        local_path(name)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["hf://me/model", "hf://me/model/a.pth"])
def test_a_hub_that_does_not_answer_is_one_line(name, tmp_path, monkeypatch):
    use(monkeypatch, tmp_path)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=f"{name} is not in the cache .*127.0.0.1:9 cannot be reached") as error:
        local_path(name)
    assert len(str(error.value).splitlines()) == 1 and time.perf_counter() - start < 5


def test_the_cache_serves_while_the_hub_does_not_answer(hub, tmp_path, monkeypatch):
    path = local_path("hf://me/model/sub/a.pth")
    use(monkeypatch, tmp_path / "cache")
    assert local_path("hf://me/model/sub/a.pth") == path
    with pytest.raises(CheckpointError, match="127.0.0.1:9 cannot be reached"):
        local_path("hf://me/model")  # of which the cache has another file
