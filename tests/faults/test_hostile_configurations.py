"""A configuration that comes with data is data: nothing of it is executed, imported or unpickled."""

from pathlib import Path

import pytest
import torch

from arm_backbone.checkpoint.files import CheckpointError, read_checkpoint
from arm_toolkit.analysis.reconstruction import load_pretrainer
from arm_toolkit.engine.checkpoint_contents import check_resumable
from arm_toolkit.engine.config import config_from_text, load_config
from arm_toolkit.engine.config_text import buildable, parse_config
from arm_toolkit.errors import ConfigError
from tests.helpers.paths import ROOT
from tests.helpers.runs import CONFIGS, train
from tests.helpers.tools import own_globals

pytestmark = pytest.mark.xdist_group("hostile")
QUICK = (
    "det_configs/mask_rcnn_arm_ti_cpu.py",
    "seg_configs/upernet_arm_ti_camvid.py",
    "cls_configs/arm_b_in1k.py",
    "pretrain/configs/star/star_b_200e.py",
    "pretrain/configs/ablations/target_tokens.py",
)
CONFIG_FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("det_configs", "seg_configs", "cls_configs", "pretrain/configs")
    for path in (ROOT / folder).rglob("*.py")
    if "_base_" not in path.parts
)


@pytest.fixture
def canary(tmp_path) -> Path:
    """A file that hostile code would write."""
    return tmp_path / "canary"


@pytest.fixture(scope="module")
def checkpoints(shapes, tmp_path_factory) -> dict[str, Path]:
    """Kind -> the configuration and a checkpoint of a run that was interrupted."""
    folder = tmp_path_factory.mktemp("runs")
    short = {
        "pretrain": {"train_cfg.max_epochs": 2},
        "det": {"train_cfg.max_epochs": 2},
        "seg": {"train_cfg.max_iters": 2},
    }
    result = {}
    for kind, config in CONFIGS.items():
        options = dict(short[kind])
        if kind != "seg":
            options["train_dataloader.num_batch_per_epoch"] = 1
        cfg = config(shapes, **options, **{"default_hooks.checkpoint.interval": 1})
        train(cfg, folder / kind)
        result[kind] = cfg, next(iter(sorted((folder / kind).glob("*_1.pth"))))
    return result


CODE = {
    "a call": "model = open({canary!r}, 'w')",
    "an import": "import os",
    "an import of a name": "from os import system",
    "a statement": "open({canary!r}, 'w')",
    "a call in a list": "a = [1, open({canary!r}, 'w')]",
    "a call in dict()": "a = dict(b=open({canary!r}, 'w'))",
    "a call in a key": "a = {{open({canary!r}, 'w'): 1}}",
    "an argument of dict": "a = dict([open({canary!r}, 'w')])",
    "stars": "a = dict(**{{'b': open({canary!r}, 'w')}})",
    "stars in a dict": "a = {{**open({canary!r}, 'w')}}",
    "a comprehension": "a = [open({canary!r}, 'w') for _ in (1,)]",
    "a formatted string": "a = f\"{{open({canary!r}, 'w')}}\"",
    "an attribute": "a = ().__class__.__bases__",
    "a lambda": "a = (lambda: 1)()",
    "a default of a function": "def f(a=open({canary!r}, 'w')): pass",
    "a class": "class A: open({canary!r}, 'w')",
    "a condition": "a = 1 if open({canary!r}, 'w') else 2",
    "an operator": "a = 'a' * 10",
    "a big power": "a = 9 ** 9 ** 9",
    "a subscript": "a = [1][0]",
    "a name": "a = exit",
    "a deletion": "del a",
    "an assignment to an item": "a[open({canary!r}, 'w')] = 1",
    "two targets": "a = b = open({canary!r}, 'w')",
    "a walrus": "a = (b := open({canary!r}, 'w'))",
    "an annotation": "a: open({canary!r}, 'w') = 1",
    "bytes": "a = b'1'",
    "dict of another name": "dict = open; a = dict({canary!r}, 'w')",
    "a base file": "_base_ = ['/etc/evil.py']",
    "a decorator": "@open({canary!r}, 'w')\ndef f(): pass",
    "a with": "with open({canary!r}, 'w'): pass",
    "no Python": "a = = 1",
    "a null byte": "a = 1\0",
    "deep nesting": "a = " + "-" * 5000 + "1",
    "deep brackets": "a = " + "[" * 5000 + "]" * 5000,
}


@pytest.mark.parametrize("what", CODE)
def test_code_is_refused_and_not_executed(what, canary):
    """row_30: with the file and the line."""
    text = "first = 1\n" + CODE[what].format(canary=str(canary))
    with pytest.raises(ConfigError, match=r"^file\.pth: line [1-3] of its configuration") as error:
        config_from_text(text, "file.pth")
    assert "\n" not in str(error.value) and len(str(error.value)) < 250
    assert not canary.exists()


NAMES = {
    "a type with dots": ("model = dict(type='os.system')", "model.type='os.system'"),
    "a nested type with dots": ("a = [dict(b=dict(type='builtins.exec'))]", "a.0.b.type='builtins.exec'"),
    "a type in another scope": ("a = dict(type='evil.Model')", "a.type='evil.Model'"),
    "a type below a scope": ("a = dict(type='mmdet.models.ResNet')", "a.type='mmdet.models.ResNet'"),
    "a type that is a list": ("a = dict(type=['os.system'])", "a.type=['os.system']"),
    "a type that is a dict": ("a = dict(type=dict(type='ARM'))", "a.type="),
    "a scope": ("a = dict(type='ARM', _scope_='evil')", "a._scope_='evil'"),
    "a default scope": ("default_scope = 'evil'", "default_scope='evil'"),
    "a foreign module": ("custom_imports = dict(imports=['evil'])", "'evil'"),
    "a foreign module as a string": ("custom_imports = dict(imports='os')", "'os'"),
    "a foreign module with our prefix": ("custom_imports = dict(imports=['arm_toolkit_evil'])", "'arm_toolkit_evil'"),
    "no module name": ("custom_imports = dict(imports=['arm_toolkit..'])", "'arm_toolkit..'"),
    "imports that are none": ("custom_imports = 'os'", "custom_imports='os'"),
    "imports that are numbers": ("custom_imports = dict(imports=[1])", "custom_imports="),
    "a reserved key": ("filename = 'a'", "filename"),
}


@pytest.mark.parametrize("what", NAMES)
def test_names_that_mmengine_would_import_are_refused(what, tmp_path, monkeypatch):
    """row_30"""
    text, says = NAMES[what]
    for name in ("evil", "arm_toolkit_evil"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^file\.pth: ") as error:
        config_from_text(text, "file.pth")
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "canary").exists()


PARTS = {
    "an unregistered type": (dict(type="evil"), "model.type='evil' is not registered"),
    "a type of another scope": (dict(type="MaskRCNN"), "model.type='MaskRCNN' is not registered"),
    "an unregistered nested type": (dict(type="ARM", a=[dict(type="evil")]), "model.a.0.type='evil'"),
    "a type that mmcv evaluates": (dict(type="ARM", nms=dict(type="exit")), "model.nms.type='exit'"),
    "a string that mmdet evaluates": (
        dict(type="ARM", motion=dict(warp_mode="__import__('os').system('id')")),
        "looks like code",
    ),
    "class weights in a pickle": (dict(type="ARM", loss=dict(class_weight="evil.pkl")), "model.loss.class_weight="),
    "class weights in YAML": (dict(type="ARM", loss=dict(class_weight="evil.yaml")), "could execute code"),
    "a checkpoint of another's type": (dict(type="ImgDataPreprocessor", checkpoint="evil.pth"), "could execute code"),
}


@pytest.mark.parametrize("what", PARTS)
def test_parts_that_would_run_code_when_they_are_built(what, tmp_path, monkeypatch):
    """row_30: constructors of OpenMMLab evaluate some strings and unpickle some files."""
    part, says = PARTS[what]
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^file\.pth: ") as error:
        buildable(part, "model", "file.pth")
    assert says in str(error.value)
    assert not (tmp_path / "canary").exists()


def test_weights_that_a_part_names_are_not_loaded():
    part = dict(type="ARM", init_cfg=dict(type="Pretrained", checkpoint="evil.pth"), layers=[dict(pretrained="evil")])
    assert buildable(part, "model", "x") == dict(type="ARM", init_cfg=None, layers=[dict(pretrained=None)])


@pytest.mark.parametrize(
    "path", [path if path in QUICK else pytest.param(path, marks=pytest.mark.slow) for path in CONFIG_FILES]
)
def test_our_own_configurations_are_accepted(path):
    """What mmengine writes into a checkpoint is read back as it was, and its model may be built."""
    cfg = load_config(str(ROOT / path))
    again = config_from_text(cfg.pretty_text, "file.pth")
    assert again.to_dict() == cfg.to_dict()
    with own_globals():
        buildable(cfg.model.to_dict(), "model", "file.pth", cfg.get("default_scope", "mmengine"))


def test_values_are_read_as_python_reads_them():
    text = "a = -1.5e-3\nb = dict(c=[1, (2,), None, True], d={'e f': 'g' 'h', 1: +2})\n"
    assert parse_config(text, "x") == dict(a=-1.5e-3, b=dict(c=[1, (2,), None, True], d={"e f": "gh", 1: 2}))


# ------------------------------------------------------------------------------------------------- checkpoints


def damaged(source: Path, target: Path, **meta) -> Path:
    checkpoint = read_checkpoint(source)
    checkpoint["meta"].update(meta)
    torch.save(checkpoint, target)
    return target


def test_a_call_in_a_checkpoint_is_not_executed_by_reconstruct(checkpoints, canary, tmp_path):
    """row_30"""
    text = f"train_dataloader = dict(dataset=dict(size=96))\nmodel = open({str(canary)!r}, 'w').close()\n"
    file = damaged(checkpoints["pretrain"][1], tmp_path / "evil.pth", cfg=text)
    with pytest.raises(ConfigError, match=r"evil\.pth: line 2 of its configuration, .open"):
        load_pretrainer(file)
    assert not canary.exists()
    with pytest.raises(CheckpointError, match="evil.pth is not"):  # on the user's word it is
        load_pretrainer(file, trust=True)
    assert canary.exists()


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_call_in_a_checkpoint_is_not_executed_on_resume(kind, checkpoints, canary, tmp_path):
    """row_30: mmengine's Runner.resume executes meta["config"]."""
    cfg, source = checkpoints[kind]
    file = damaged(source, tmp_path / "evil.pth", config=f"gpu_ids = [open({str(canary)!r}, 'w')]\n")
    with pytest.raises(CheckpointError, match=r"evil\.pth: line 1 of its configuration, .*load_from=FILE"):
        train(cfg, tmp_path / "work", "--resume", str(file))
    assert not canary.exists() and not (tmp_path / "work").exists()
    file = damaged(source, tmp_path / "old.pth", config="gpu_ids = range(0, 8)\n")
    with pytest.raises(CheckpointError, match="range"):
        train(cfg, tmp_path / "work", "--resume", str(file))


def test_a_plain_configuration_of_an_old_checkpoint_resumes(checkpoints, tmp_path):
    cfg, source = checkpoints["seg"]
    file = damaged(source, tmp_path / "old.pth", config="gpu_ids = [0, 1]\n")
    assert train(cfg, tmp_path / "work", "--resume", str(file)).iter == 2


CONTENTS = {
    "message_hub is a string": (dict(message_hub="x"), "message_hub is a str"),
    "message_hub is empty": (dict(message_hub={}), "message_hub has no dict log_scalars"),
    "log buffers are none": (
        dict(message_hub=dict(log_scalars=dict(a=dict(log_history=3)), runtime_info={}, resumed_keys={})),
        "log_scalars.a is not a log of numbers",
    ),
    "meta is a list": (dict(meta=[]), "meta is a list"),
    "no iterations": (dict(meta=dict(epoch=0)), "meta.iter is None"),
    "iterations are text": (dict(meta=dict(epoch=0, iter="1")), "meta.iter is '1'"),
    "negative iterations": (dict(meta=dict(epoch=0, iter=-1)), "meta.iter is -1"),
    "iterations are 10^9": (dict(meta=dict(epoch=0, iter=10**9)), "meta.iter is 1000000000, but this run ends at 2"),
    "the optimizer is a list": (dict(optimizer=[1]), "optimizer is a list"),
    "the optimizer is empty": (dict(optimizer={}), "has no optimizer state"),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_contents_that_resuming_cannot_use(what, checkpoints, tmp_path):
    """row_48"""
    cfg, source = checkpoints["seg"]
    change, says = CONTENTS[what]
    file = tmp_path / "evil.pth"
    torch.save(read_checkpoint(source) | change, file)
    with pytest.raises(CheckpointError) as error:
        if says in ("has no optimizer state", "message_hub is a str"):  # needs a run, or an example
            train(cfg, tmp_path / "work", "--resume", str(file))
        else:
            check_resumable(read_checkpoint(file), str(file), 2, None)
    assert says in str(error.value) and str(file) in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "work").exists()
