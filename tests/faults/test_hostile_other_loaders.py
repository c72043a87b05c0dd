"""What SECURITY.md says about loaders of mmdet and mmseg, and `check_file`, which is to be called before them."""

import os

import pytest
import torch
from mmdet.apis import init_detector
from mmengine.config import Config
from mmseg.apis import init_model

from arm_backbone.checkpoint.files import CheckpointError
from arm_toolkit.engine.checkpoint_contents import check_file
from arm_toolkit.errors import ConfigError
from tests.helpers.hostile import CHECKPOINTS, Call
from tests.helpers.runs import det_config, seg_config
from tests.helpers.tools import own_globals

pytestmark = pytest.mark.xdist_group("hostile")


@pytest.mark.parametrize(("load", "config"), [(init_detector, det_config), (init_model, seg_config)])
def test_loaders_of_mmdet_and_mmseg_execute_pickles(load, config, shapes, tmp_path):
    """row_31: if this fails, mmengine has mended it: say so in SECURITY.md and in README.md."""
    canary, file = tmp_path / "canary", tmp_path / "evil.pth"
    evil = Call(os.system, f"touch {canary}")
    torch.save(dict(state_dict={}, meta=dict(dataset_meta=dict(classes=("a",), palette=[(0, 0, 0)]), evil=evil)), file)
    with pytest.raises(CheckpointError, match="evil.pth holds posix.system"):
        check_file(file)
    assert not canary.exists()
    with own_globals():
        load(Config(config(shapes).to_dict()), str(file), device="cpu")
    assert canary.exists()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_check_file_refuses_what_executes_code(name, tmp_path):
    """row_31"""
    (tmp_path / name).write_bytes(CHECKPOINTS[name](tmp_path / "canary"))
    with pytest.raises(CheckpointError, match=name):
        check_file(tmp_path / name)
    assert not (tmp_path / "canary").exists()


TEXTS = {
    "a call": "model = open({canary!r}, 'w')",
    "a type with dots": "model = dict(type='os.system')",
    "a type that is not registered": "model = dict(type='evil')",
    "a foreign module": "custom_imports = dict(imports=['evil'])",
    "an expression that mmdet evaluates": "model = dict(type='ARM', warp_mode='exit()')",
}


@pytest.mark.parametrize("place", ["meta.cfg", "meta.config", "message_hub"])
@pytest.mark.parametrize("what", TEXTS)
def test_check_file_refuses_a_configuration_that_executes_code(what, place, tmp_path):
    """mmengine's inferencers execute message_hub.runtime_info.cfg or meta.cfg; Runner.resume executes meta.config."""
    if place == "meta.config" and what != "a call":
        return  # it is executed, but nothing is built from it
    text = TEXTS[what].format(canary=str(tmp_path / "canary"))
    contents = dict(message_hub=dict(runtime_info=dict(cfg=text))) if place == "message_hub" else {}
    contents |= dict(meta={place.partition(".")[2]: text})
    torch.save(dict(state_dict=dict(a=torch.ones(1)), **contents), tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match="evil.pth: "):
        check_file(tmp_path / "evil.pth")
    assert not (tmp_path / "canary").exists()
