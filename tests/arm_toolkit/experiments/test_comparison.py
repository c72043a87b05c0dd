"""Plans of steps, and the comparison of pretraining choices that is built from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from arm_backbone.checkpoint.files import model_state, read_checkpoint
from arm_images.errors import DataError
from arm_toolkit.engine.config import load_config
from arm_toolkit.errors import ConfigError
from arm_toolkit.experiments.comparison import Comparison, paired, table, verdicts
from arm_toolkit.experiments.steps import Spent, Step, finished_steps, run_steps
from arm_toolkit.experiments.studies import PROBE, STUDIES
from arm_toolkit.machine import available_cores
from tests.helpers.paths import ROOT
from tests.helpers.tools import run_tool

APPEND = "import sys; open(sys.argv[1], 'a').write(sys.argv[2])"


def test_steps_wait_for_each_other_and_are_run_once(tmp_path, capsys):
    file = str(tmp_path / "written")
    steps = [
        Step("last", ("-c", APPEND, file, "c"), ("middle",)),
        Step("middle", ("-c", APPEND, file, "b"), ("first",)),
        Step("first", ("-c", APPEND, file, "a")),
    ]
    spent = run_steps(steps, tmp_path / "plan")
    assert Path(file).read_text() == "abc"
    assert all(0 < s.cpu_seconds and 0 < s.seconds < 60 for s in spent.values())
    assert run_steps(steps, tmp_path / "plan") == spent == finished_steps(tmp_path / "plan")
    assert Path(file).read_text() == "abc"
    changed = [steps[0], Step("middle", ("-c", APPEND, file, "B"), ("first",)), steps[2]]
    run_steps(changed, tmp_path / "plan")
    assert Path(file).read_text() == "abcBc"  # reruns the steps after it, not those before it


def test_nothing_runs_beside_a_step_that_is_alone(tmp_path):
    """It gets all cores and waits for those before it; those after it in the list wait for it."""
    file = str(tmp_path / "written")
    code = "import os, sys, time; f = open(sys.argv[1], 'a', 1); name = sys.argv[2]; f.write('<' + name);"
    code += "time.sleep(0.3); f.write(os.environ['OMP_NUM_THREADS'] + name + '>')"
    steps = [Step(name, ("-c", code, file, name), alone=name == "b") for name in "abc"]
    run_steps(steps, tmp_path / "plan")
    written = Path(file).read_text()
    assert f"<b{available_cores()}b>" in written and written.index("a>") < written.index("<b") < written.index("<c")


def test_a_step_whose_input_changed_is_run_again(tmp_path):
    file, read = tmp_path / "written", tmp_path / "list.txt"
    steps = [Step("only", ("-c", APPEND, str(file), "a"), reads=(read,))]
    for content, written in (("one", "a"), ("one", "a"), ("two", "aa")):
        read.write_text(content)
        run_steps(steps, tmp_path / "plan")
        assert file.read_text() == written


@pytest.mark.parametrize("damage", ["", '{"inputs": {}, "spe', "[]", '{"inputs": {}, "spent": {"seconds": 1}}'])
def test_a_step_with_a_damaged_record_is_run_again(tmp_path, damage, capsys):
    file = tmp_path / "written"
    steps = [Step("only", ("-c", APPEND, str(file), "a"))]
    spent = run_steps(steps, tmp_path)
    (tmp_path / "done/only.json").write_text(damage)  # killed while writing, or edited
    assert finished_steps(tmp_path) == {} and "only.json is not a complete record" in capsys.readouterr().out
    assert run_steps(steps, tmp_path)["only"].run != spent["only"].run and file.read_text() == "aa"
    assert not list(tmp_path.rglob("*.part"))


def test_a_step_that_failed_is_named_and_run_again_from_nothing(tmp_path):
    folder = tmp_path / "made"
    code = "import os, sys; os.mkdir(sys.argv[1]); sys.exit('no good' if len(sys.argv) > 2 else 0)"
    with pytest.raises(ConfigError, match="step broken failed, see .*broken.log:\nno good"):
        run_steps([Step("broken", ("-c", code, str(folder), "x"), makes=folder)], tmp_path)
    assert folder.is_dir()
    run_steps([Step("broken", ("-c", code, str(folder)), makes=folder)], tmp_path)


@pytest.fixture
def comparison(tmp_path) -> Comparison:
    for name in ("a_1", "a_2", "b_1"):
        path = tmp_path / f"camvid/images/training/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "camvid/meta.json").write_text('{"classes": ["sky", "road"]}')
    (tmp_path / "list.txt").write_text("camvid/images/training/a_1.jpg\ncamvid/images/training/b_1.jpg\nother/c.jpg\n")
    study = STUDIES["variants"]
    return Comparison(study, tmp_path / "out", tmp_path / "list.txt", tmp_path, tmp_path / "camvid", "b_")


def test_the_held_out_drive_is_in_no_training(comparison):
    comparison.write_lists()
    lists = {name: (comparison.folder / f"{name}.txt").read_text().split() for name in ("training", "held_out")}
    assert lists == dict(training=["a_1", "a_2"], held_out=["b_1"])
    photographs = (comparison.folder / "photographs.txt").read_text().split()
    assert photographs == ["camvid/images/training/a_1.jpg", "other/c.jpg"]
    with pytest.raises(DataError, match="--held-out x: 0 of 3 frames"):
        replace(comparison, held_out="x").write_lists()
    with pytest.raises(DataError, match="--camvid .*nowhere: needs images/training"):
        replace(comparison, camvid=Path("nowhere")).write_lists()


def cells(markdown: str, name: str) -> list[str]:
    """The cells after the first one in the row `name`."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    return next(row[1:] for row in rows if row[0] == name)


def test_the_results_are_read_from_the_files(comparison):
    """One finished training gives its scores, the IoU per class from the label maps, and its curve."""
    comparison.write_lists()
    folder = comparison.folder / "arm_0/finetune"
    for path in (comparison.camvid / "annotations/training/b_1.png", folder / "predictions/b_1.png"):
        path.parent.mkdir(parents=True)
        Image.fromarray(np.uint8([[1, 1, 2, 0]])).save(path)
    (folder / "test/1").mkdir(parents=True)
    (folder / "test/1/1.json").write_text('{"mIoU": 61.23}')
    (folder / "1/vis_data").mkdir(parents=True)
    (folder / "1/vis_data/scalars.json").write_text('{"loss": 2.5, "step": 10}\n{"loss": 1.5, "step": 20}\n')
    assert comparison.scores("arm_0", "finetune") == dict(mIoU=61.23, classes=[100.0, 100.0])
    assert comparison.scores("arm_1", "finetune") is None
    text = comparison.write_results({"arm_0_finetune": Spent(9, 30.0, "")}).read_text()
    assert cells(text, "arm") == ["61.2", "-", "-", "-", "0.5"] and cells(text, "none") == ["-"] * 5
    assert "finetuned: arm against none: not finished" in text
    (line,) = comparison.curves().axes[1].lines
    assert line.get_xdata().tolist() == [10, 20] and line.get_label() == "arm"


@pytest.mark.parametrize(("study", "seeds", "number"), [("variants", (0, 1), 68), ("paradigms", (0, 1, 2), 76)])
def test_every_cell_is_a_run_of_its_configuration(comparison, study, seeds, number):
    steps = {step.name: step for step in replace(comparison, study=STUDIES[study], seeds=seeds).steps()}
    assert len(steps) == number
    for name, step in steps.items():
        assert set(step.after) <= steps.keys()
        if step.command[0] not in ("tools/pretrain.py", "tools/train.py", "tools/knn.py"):
            continue
        words = step.command[step.command.index("--cfg-options") + 1 :]
        cfg = load_config(step.command[1], dict(word.split("=", 1) for word in words if "=" in word))
        assert str(cfg.randomness.seed) in name.split("_")
        if "pretrain" in step.command[0]:
            continue
        assert (cfg.model.backbone.type == "Vim") == name.startswith("vim")
        if "knn" in step.command[0]:
            assert (len(step.command[: step.command.index("--json")]) == 2) == ("none" in name)
            continue
        assert str(cfg.train_cfg.max_iters) == str(cfg.param_scheduler[1].end) == "250"
        start = cfg.model.backbone.init_cfg
        assert start is None if "none" in name else start.checkpoint.endswith("/backbone.pth")
        assert ("frozen_stages" in cfg.model.backbone) == ("probe" in name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arm", "mae", "moco", "vim_arm"])
def test_every_pretraining_converts_into_the_backbone_that_judges_it(name, tmp_path):
    choice = STUDIES["paradigms"].choices[name]
    with DefaultScope.overwrite_default_scope("mmengine"):
        pretrained = MODELS.build(load_config(str(ROOT / choice.config)).model)
    torch.save(pretrained.state_dict(), tmp_path / "pretrained.pth")
    words = (tmp_path / "pretrained.pth", tmp_path / "backbone.pth", "--to", "backbone", *choice.convert)
    done = run_tool("convert_checkpoint.py", *words)
    assert done.returncode == 0, done.stderr
    start = {"model.backbone.init_cfg.checkpoint": str(tmp_path / "backbone.pth")}
    with DefaultScope.overwrite_default_scope("mmseg"):
        backbone = MODELS.build(load_config(str(ROOT / choice.probe), start).model).backbone
    backbone.init_weights()
    name = "blocks.0.mixer.in_proj.weight"
    assert torch.equal(backbone.state_dict()[name], model_state(read_checkpoint(tmp_path / "backbone.pth"))[name])


@pytest.mark.parametrize("config", [PROBE, STUDIES["paradigms"].choices["vim_none"].probe])
def test_the_probe_is_linear_and_trains_nothing_else(config):
    cfg = load_config(str(ROOT / config), {"model.backbone.init_cfg": None})
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(cfg.model).train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    heads = {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
    assert trained - heads == {f"backbone.out_norms.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}
    assert trained > heads and model.decode_head.conv_seg.weight.shape == (11, 4 * 192, 1, 1)


def test_equal_compute_is_counted_from_the_cpu_seconds(comparison):
    equal = comparison.equal_compute_steps({"arm_0_pretrain": Spent(9, 30.0, ""), "arm_0_finetune": Spent(9, 15.0, "")})
    assert "train_cfg.max_iters=750" in equal[0].command and "model.backbone.init_cfg=None" in equal[0].command


def results_of(study, finetune, probe, **others) -> dict:
    """Results in which every choice has the given mIoU, seed by seed, except those given by name."""

    def cells(finetune, probe):
        return {
            seed: dict(finetune=dict(mIoU=f), probe=dict(mIoU=p), cpu_seconds=dict(pretrain=60.0, finetune=60.0))
            for seed, (f, p) in enumerate(zip(finetune, probe, strict=True))
        }

    return {name: cells(*others.get(name, (finetune, probe))) for name in study.choices}


def test_the_table_and_the_criterion_of_the_mean():
    study = STUDIES["variants"]
    results = results_of(study, (20.0, 21.0), (10.0, 11.0), arm=((22.0, 22.5), (13.0, 12.8)))
    assert paired(results, "arm", "none", "finetune") == ([22.0, 22.5], [20.0, 21.0])
    assert cells(table(results, study), "arm") == ["22.0 / 22.5", "+1.8", "13.0 / 12.8", "+2.4", "2.0"]
    assert [line.endswith(": met") for line in verdicts(results, study)] == [True, True]
    # one seed loses, although the mean gains 1.45; and both gain, but less than 2 on average
    results = results_of(study, (20.0, 21.0), (10.0, 11.0), arm=((23.0, 20.9), (13.0, 11.5)))
    assert [line.endswith("not met") for line in verdicts(results, study)] == [True, True]


def test_the_criterion_of_the_spread():
    """The lowest of one above the highest of the other, in either direction; one seed gets no verdict."""
    spread = STUDIES["paradigms"].verdict
    assert spread("finetune", [20.1], [20.0]) == "+0.10; one seed, no verdict"
    assert spread("finetune", [20.1, 20.2], [20.3, 20.4]) == "-0.20, -0.20; a loss beyond the spread of the seeds"
    study = replace(STUDIES["paradigms"], measures=("finetune", "probe"))
    results = results_of(
        study, (20.0, 21.0), (10.0, 11.0), arm=((22.0, 21.1), (13.0, 11.0)), mae=((20.0, 21.0), (15.0, 16.0))
    )
    assert [(line.split(":")[0][2:], line.split(": ")[1], "beyond" in line) for line in verdicts(results, study)] == [
        ("finetuned", "arm against none", True),
        ("linear probe", "arm against none", False),
        ("finetuned", "mae against none", False),
        ("linear probe", "mae against none", True),
        ("finetuned", "arm against mae", True),
        ("linear probe", "arm against mae", True),
    ]
    del results["mae"][1]
    assert verdicts(results, study)[2].endswith("not finished")
