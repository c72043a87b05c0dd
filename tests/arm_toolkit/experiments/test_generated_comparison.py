"""The comparison over seeds runs the quickstart's configurations, and judges by the spread of the seeds."""

import json

import pytest

from arm_toolkit.engine.config import load_config
from arm_toolkit.experiments.generated import DET, PRETRAIN
from arm_toolkit.experiments.generated_comparison import (
    LEAST,
    MEASURES,
    RECORDED,
    STARTS,
    GeneratedComparison,
    gains,
    table,
)
from tests.helpers.paths import ROOT
from tests.helpers.tools import call_tool


@pytest.fixture
def comparison(tmp_path) -> GeneratedComparison:
    return GeneratedComparison(tmp_path, (3, 4))


def test_every_step_is_a_run_of_its_configuration(comparison):
    steps = {step.name: step for step in comparison.steps()}
    assert len(steps) == 2 * (3 + 2 * 3 * 2)
    for name, step in steps.items():
        assert set(step.after) <= steps.keys() and step.alone is name.startswith("pretrain")
        if step.command[0] not in ("tools/pretrain.py", "tools/train.py"):
            continue
        words = step.command[step.command.index("--cfg-options") + 1 :]
        cfg = load_config(step.command[1], dict(word.split("=", 1) for word in words))
        seed = str(cfg.randomness.seed)
        assert name.endswith(f"_{seed}")
        if step.command[1] == PRETRAIN:
            assert f"{comparison.folder}/shapes_{seed}/coco/train2017" in step.command
            continue
        kind = "coco" if step.command[1] == DET else "ade"
        assert cfg.train_dataloader.dataset.data_root == f"{comparison.folder}/shapes_{seed}/{kind}/"
        assert cfg.train_dataloader.dataset.indices == 20
        start = cfg.model.backbone.init_cfg
        assert start is None if "scratch" in name else start.checkpoint.endswith(f"/backbone_{seed}.pth")
        assert (str(cfg.model.backbone.get("frozen_stages")) == "6") == ("probe" in name)


def test_unfinished_steps_are_dashes(comparison):
    text = comparison.write_results().read_text()
    assert "| box AP                | – / –      | – / –        |" in text and "mIoU: not finished." in text
    results = json.loads((comparison.folder / "results.json").read_text())
    assert results["seeds"] == [3, 4] and results["results"]["scratch"][1]["box AP"] is None


def test_the_documentation_repeats_the_record():
    results = json.loads(RECORDED.read_text())["results"]
    page = (ROOT / "docs/pretraining.md").read_text()
    assert table(results) in page and all(f"* {line}\n" in page for line in gains(results))


def cells(*points: float) -> list[dict]:
    return [dict.fromkeys((*MEASURES, LEAST), x) for x in points]


def test_a_gain_counts_if_every_seed_with_pretraining_beats_every_seed_without():
    results = dict(zip(STARTS, (cells(30.0, 32.0), cells(25.0, 29.9))))
    assert gains(results)[0] == "box AP: +5.0, +2.1; beyond the spread of the seeds."
    results["scratch"][1]["mIoU"] = 30.0  # both seeds gain, but one without pretraining reaches one with
    assert gains(results)[2] == "mIoU: +5.0, +2.0; within the spread of the seeds."
    assert "| mIoU                  | 30.0 / 32.0 | 25.0 / 30.0  |" in table(results)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--generated", "--camvid", "x"], "--camvid: not with --generated"),
        (["--generated", "--epochs", "3"], "--epochs: not with --generated"),
        (["--camvid", "x"], "--photographs, --prefix, --held-out: needed to compare on photographs"),
    ],
)
def test_options_of_the_other_comparison_are_refused(arguments, words, capsys):
    assert call_tool("compare_pretraining.py", *arguments) == 2
    assert words in capsys.readouterr().err
