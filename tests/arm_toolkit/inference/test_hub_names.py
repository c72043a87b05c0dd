"""`hf://` names wherever a checkpoint is named, with a hub on this machine and with its cache alone."""

import re
from pathlib import Path

import pytest
import torch

from arm_backbone import ARM
from arm_backbone.checkpoint.files import read_checkpoint
from tests.helpers.hub_server import Hub, environment, serve, use
from tests.helpers.published import config_of, publish_small
from tests.helpers.small_models import ARCH
from tests.helpers.tools import invoke, run_tool

pytestmark = pytest.mark.xdist_group("published")
ENCODER = "{'type': 'Pretrained', 'checkpoint': '%s'}"


@pytest.fixture(scope="module")
def hub(shapes, tmp_path_factory):
    """A server with a published encoder and segmentor, and their checkpoints beside them."""
    folder, running = tmp_path_factory.mktemp("hub"), Hub()
    for kind in ("backbone", "seg"):
        published = publish_small(kind, shapes, folder / kind)
        files = {path.name: path.read_bytes() for path in published.folder.iterdir()}
        running.files[f"me/{kind}"] = files | {"run/epoch_2.pth": (folder / kind / "epoch_2.pth").read_bytes()}
    with serve(running):
        yield running


@pytest.fixture
def here(hub, shapes, tmp_path, monkeypatch) -> Path:
    use(monkeypatch, tmp_path / "cache", hub.url)
    config_of("seg", shapes).dump(tmp_path / "seg.py")
    return tmp_path


TOOLS = [
    ("convert_checkpoint.py", "hf://me/backbone", "a.pth", "--to", "backbone"),
    ("convert_checkpoint.py", "hf://me/backbone/run/epoch_2.pth", "a.pth", "--to", "backbone"),
    ("train.py", "seg.py", "--check", "--cfg-options", f"model.backbone.init_cfg={ENCODER % 'hf://me/backbone'}"),
    ("train.py", "seg.py", "--check", "--cfg-options", "load_from=hf://me/seg"),
    ("train.py", "seg.py", "--check", "--cfg-options", "load_from=hf://me/seg/run/epoch_2.pth@main"),
    ("test.py", "seg.py", "hf://me/seg", "--check"),
    ("publish.py", "hf://me/seg/run/epoch_2.pth", "published"),
]


@pytest.mark.parametrize(
    "arguments", [*TOOLS[:3], *(pytest.param(tool, marks=pytest.mark.slow) for tool in TOOLS[3:])], ids=str
)
def test_tools_read_names_on_the_hub(arguments, here):
    done = invoke(*arguments, cwd=here)
    assert done.returncode == 0, done.stderr
    absent = [re.sub(r"me/(seg|backbone)", "me/absent", argument) for argument in arguments]
    done = invoke(*absent, cwd=here)
    assert done.returncode == 2 and re.search(
        "^error: hf://me/absent.* does not exist or is private", done.stderr, re.M
    )


def test_a_backbone_starts_from_the_hub(here):
    model = ARM(ARCH, img_size=64, init_cfg=dict(type="Pretrained", checkpoint="hf://me/backbone"))
    model.init_weights()
    state = read_checkpoint("hf://me/backbone/run/epoch_2.pth")["state_dict"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


@pytest.mark.slow
def test_a_process_of_its_own(hub, tmp_path):
    """The variables of huggingface_hub, as a user sets them: a server, and the cache alone."""
    arguments = ("a.pth", "--to", "backbone")
    env = environment(tmp_path / "cache", hub.url)
    done = run_tool("convert_checkpoint.py", "hf://me/backbone", *arguments, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    env = environment(tmp_path / "cache", offline=True)
    done = run_tool("convert_checkpoint.py", "hf://me/seg", *arguments, env=env, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "hf://me/seg is not in the cache" in done.stderr and "HF_HUB_OFFLINE is set" in done.stderr
