"""Moved modules: the error for an old configuration names the new module, and an old checkpoint loads and resumes."""

from importlib.util import find_spec

import pytest
import torch

from arm_backbone.checkpoint.files import read_checkpoint
from arm_toolkit.analysis.reconstruction import load_pretrainer
from arm_toolkit.engine.config import MOVED, load_config
from arm_toolkit.errors import ConfigError
from tests.helpers.runs import pretrain_config, train


@pytest.mark.parametrize("old", MOVED)
def test_the_error_for_a_moved_module_names_the_new_one(old, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f'custom_imports = dict(imports=["arm_backbone", "{old}"], allow_failed_imports=False)\n')
    with pytest.raises(ConfigError) as error:
        load_config(str(file))
    assert "\n" not in str(error.value) and str(error.value).startswith(f'{file}: custom_imports has "{old}"')
    assert all(f'"{new}"' in str(error.value) and find_spec(new) for new in MOVED[old])


def test_a_module_that_does_not_exist_is_one_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text('custom_imports = dict(imports=["arm_toolkit.gone"], allow_failed_imports=False)\n')
    with pytest.raises(ConfigError, match="mine.py: custom_imports: Failed to import arm_toolkit.gone$"):
        load_config(str(file))


def test_an_old_checkpoint_loads_and_resumes(shapes, tmp_path):
    cfg = pretrain_config(shapes, **{"train_cfg.max_epochs": 2, "default_hooks.checkpoint.interval": 1})
    train(cfg, tmp_path / "whole")
    checkpoint = read_checkpoint(tmp_path / "whole/epoch_1.pth")
    text = checkpoint["meta"]["cfg"]
    assert "'arm_toolkit.openmmlab'" in text
    checkpoint["meta"]["cfg"] = text.replace("'arm_toolkit.openmmlab'", "'arm_toolkit', 'arm_toolkit.watch'")
    torch.save(checkpoint, tmp_path / "old.pth")

    model, cfg_of_file = load_pretrainer(tmp_path / "old.pth")
    assert torch.equal(model.mask_token, checkpoint["state_dict"]["mask_token"])
    names = ["arm_pretrain", "arm_toolkit.openmmlab", "arm_toolkit.analysis.reconstruction_hook"]
    assert cfg_of_file.custom_imports.imports == names
    assert train(cfg, tmp_path / "rest", "--resume", str(tmp_path / "old.pth")).epoch == 2
    one, two = (read_checkpoint(tmp_path / name / "epoch_2.pth")["state_dict"] for name in ("whole", "rest"))
    assert all(torch.equal(one[name], two[name]) for name in one)
