"""A resumed run uses what is configured, says what differs from the run that it continues, and refuses the rest."""

import functools
import warnings

import pytest
import torch

from arm_backbone.checkpoint.files import CheckpointError
from arm_toolkit.engine.schedule import follow_length
from arm_toolkit.errors import ConfigError
from tests.helpers.runs import CONFIGS, Stopped, det_config, logged, pretrain_config, seg_config, train
from tests.helpers.weights import assert_same_weights


def rates(folder) -> dict[int, float]:
    return {step: line["lr"] for step, line in logged(folder).items()}


@pytest.fixture(scope="module")
def stopped(shapes, tmp_path_factory):
    """Gives the work dir of a run of a kind, which is trained once."""

    @functools.cache
    def work_dir(kind):
        folder = tmp_path_factory.mktemp(kind)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Seems like `optimizer.step")  # of mmengine, if we hide its own step
            train(CONFIGS[kind](shapes), folder)
        return folder

    return work_dir


KINDS = [pytest.param(kind, marks=[] if kind == "pretrain" else [pytest.mark.slow]) for kind in CONFIGS]
FIRST = dict(pretrain="epoch_2.pth", det="epoch_1.pth", seg="iter_4.pth")
LAST = dict(pretrain="epoch_4.pth", det="epoch_2.pth", seg="iter_8.pth")
LENGTH = dict(pretrain={"train_cfg.max_epochs": 6}, det={"train_cfg.max_epochs": 3}, seg={"train_cfg.max_iters": 12})


@pytest.mark.parametrize("kind", KINDS)
def test_another_learning_rate_is_applied(kind, shapes, stopped, tmp_path):
    """row_19: --resume with another lr continues with the rates that a run with it would have."""
    cfg = CONFIGS[kind](shapes)
    cfg.optim_wrapper.optimizer.lr *= 0.1
    train(cfg, tmp_path / "rest", "--resume", str(stopped(kind) / FIRST[kind]))
    before, after = rates(stopped(kind)), rates(tmp_path / "rest")
    assert after and all(after[step] == pytest.approx(0.1 * before[step], abs=1e-12) for step in after)
    assert log_of(tmp_path / "rest").count("optim_wrapper.optimizer.lr is ") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_training_has_a_longer_schedule(kind, shapes, stopped, tmp_path):
    """row_20: a longer length, from the start or on resuming a finished run: equal rates, above 0."""
    cfg = CONFIGS[kind](shapes, **LENGTH[kind])
    train(cfg, tmp_path / "rest", "--resume", str(stopped(kind) / LAST[kind]))
    train(cfg, tmp_path / "whole")
    rest, whole = rates(tmp_path / "rest"), rates(tmp_path / "whole")
    assert rest and all(rest[step] == pytest.approx(whole[step], rel=1e-6) for step in rest)
    assert min(list(rest.values())[:-1]) > 0.01 * max(whole.values())


def test_schedules_follow_the_length():
    """row_20: ends and milestones scale, a warm-up that fits stays."""
    warm_up = dict(type="LinearLR", by_epoch=False, begin=0, end=20)
    steps = dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11])
    (same, moved), lines = follow_length([warm_up, steps], 24, 2400)
    assert same == warm_up and moved == {**steps, "end": 24, "milestones": [16, 22]} and len(lines) == 1
    assert follow_length([warm_up, steps], 12, 1200) == ([warm_up, steps], [])
    cosine = dict(type="CosineAnnealingLR", by_epoch=False, begin=20, end=240)
    assert [part["end"] for part in follow_length([warm_up, cosine], None, 10)[0]] == [10]
    with pytest.raises(ConfigError, match="param_scheduler.0.by_epoch"):
        follow_length([dict(type="PolyLR", end=10)], None, 10)


WARM = [dict(type="LinearLR", by_epoch=False, begin=0, end=2, start_factor=0.1)]
POLY = dict(type="PolyLR", by_epoch=False, begin=0, end=8, power=0.9)
SCHEDULES = {
    "none": None,
    "one instead of two": [POLY],
    "three instead of two": [*WARM, POLY, dict(type="ConstantMomentum", by_epoch=False, factor=0.5, end=3)],
    "another kind": [*WARM, dict(type="CosineAnnealingLR", by_epoch=False, begin=2, end=8, T_max=6)],
}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what.startswith("three") else pytest.mark.slow) for what in SCHEDULES]
)
def test_other_schedules_are_used_from_the_start(what, shapes, stopped, tmp_path):
    """row_20: another number or kind of schedules on resuming: equal rates, and a line."""
    cfg = seg_config(shapes)
    cfg.param_scheduler = SCHEDULES[what]
    train(cfg, tmp_path / "whole")
    train(cfg, tmp_path / "rest", "--resume", str(stopped("seg") / "iter_4.pth"))
    assert log_of(tmp_path / "rest").count("param_scheduler or the length of training is another one") == 1
    assert_same_rates(tmp_path)
    if what == "none":  # and back again
        train(seg_config(shapes), tmp_path / "back", "--resume", str(tmp_path / "rest/iter_8.pth"))
        assert "param_scheduler or the length of training is another one" in log_of(tmp_path / "back")


def assert_same_rates(folder) -> None:
    rest, whole = rates(folder / "rest"), rates(folder / "whole")
    assert rest and all(rest[step] == pytest.approx(whole[step], rel=1e-6) for step in rest)


@pytest.mark.slow
def test_a_detector_resumes_within_an_epoch(shapes, tmp_path):
    """row_43: the same iterations and, bit for bit, the same weights as without the interruption."""
    options = {"default_hooks.checkpoint.by_epoch": False, "default_hooks.checkpoint.interval": 3}
    cfg = det_config(shapes, **options)
    cfg.param_scheduler = [dict(type="MultiStepLR", by_epoch=True, end=2, milestones=[1], gamma=0.1)]
    train(cfg, tmp_path / "whole")
    assert len(logged(tmp_path / "whole")) == 16
    cfg.custom_hooks = [dict(type="StopAt", iteration=5)]
    with pytest.raises(Stopped):
        train(cfg, tmp_path / "run")
    cfg.custom_hooks = None
    # the end of an epoch, not yet counted: the milestone's step is still to come
    cfg.default_hooks.checkpoint.interval = 8
    train(cfg, tmp_path / "eight")
    train(cfg, tmp_path / "second", "--resume", str(tmp_path / "eight/iter_8.pth"))
    assert rates(tmp_path / "second")[9] == pytest.approx(0.1 * rates(tmp_path / "eight")[8])
    assert_same_weights(tmp_path / "whole/iter_16.pth", tmp_path / "second/iter_16.pth", rtol=0, atol=0)
    train(cfg, tmp_path / "run", "--resume", str(tmp_path / "run/iter_3.pth"))
    assert_same_weights(tmp_path / "whole/iter_16.pth", tmp_path / "run/iter_16.pth", rtol=0, atol=0)


def test_a_checkpoint_of_another_kind_of_run(shapes, stopped, tmp_path):
    """row_44: of a run that counts iterations."""
    with pytest.raises(CheckpointError, match="iter_4.pth comes from a run that counted iterations"):
        train(pretrain_config(shapes), tmp_path / "rest", "--resume", str(stopped("seg") / "iter_4.pth"))
    assert not (tmp_path / "rest").exists()


def changed(source, path, change):
    checkpoint = torch.load(source, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    return str(path)


def nan_moments(checkpoint):
    next(iter(checkpoint["optimizer"]["state"].values()))["exp_avg"].fill_(float("nan"))


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"train_dataloader.batch_size": 8}, None, "an epoch had 4 iterations, here it has 2"),
        ({"train_dataloader.dataset.indices": 8}, None, "an epoch had 4 iterations"),
        ({"optim_wrapper.optimizer": dict(_delete_=True, type="SGD", lr=0.1)}, None, "optimizer was AdamW"),
        ({}, lambda c: c.pop("optimizer"), "has no optimizer state"),
        ({}, nan_moments, "1 of .* of the optimizer state are not finite"),
    ],
    ids=["batch size", "data set", "optimizer", "no optimizer", "NaN in the optimizer"],
)
def test_what_cannot_be_continued_is_refused(options, change, message, shapes, stopped, tmp_path):
    """row_44: a refusal in one line, and no new work dir."""
    options = dict(options)
    images = options.pop("train_dataloader.dataset.indices", None)
    cfg = pretrain_config(shapes, **options)
    if images:
        files = sorted((shapes / "coco/train2017").glob("*"))[:images]
        (tmp_path / "list.txt").write_text("".join(f"{file}\n" for file in files))
        cfg.train_dataloader.dataset.path = str(tmp_path / "list.txt")
    source = stopped("pretrain") / "epoch_2.pth"
    source = changed(source, tmp_path / "c.pth", change) if change else str(source)
    with pytest.raises(CheckpointError, match=message) as error:
        train(cfg, tmp_path / "rest", "--resume", source)
    assert "\n" not in str(error.value) and "load_from" in str(error.value)
    assert not (tmp_path / "rest").exists()


def log_of(folder) -> str:
    return "".join(file.read_text() for file in folder.glob("*/*.log"))


def test_a_resumed_segmentor_says_what_differs(shapes, stopped, tmp_path):
    """row_44: another batch size and weight decay are one line each."""
    cfg = seg_config(shapes, **{"train_dataloader.batch_size": 2, "optim_wrapper.optimizer.weight_decay": 0.5})
    train(cfg, tmp_path / "rest", "--resume", str(stopped("seg") / "iter_4.pth"))
    log = log_of(tmp_path / "rest")
    assert "a batch has 2 images, it had 4" in log and "optim_wrapper.optimizer.weight_decay is 0.5, it was" in log
    saved = torch.load(tmp_path / "rest/iter_8.pth", weights_only=True)["optimizer"]["param_groups"]
    assert max(group["weight_decay"] for group in saved) == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_says_so(kind, shapes, stopped, tmp_path):
    """row_44: resuming a finished run ends at once, and says why."""
    train(CONFIGS[kind](shapes), tmp_path / "rest", "--resume", str(stopped(kind) / LAST[kind]))
    assert "this run is finished" in log_of(tmp_path / "rest") and not logged(tmp_path / "rest")


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_a_segmentor_trains_on_one_image_at_a_time(norm, shapes, tmp_path):
    """row_24: batch_size=1 with BatchNorm: GroupNorm takes its place, and the log says so."""
    cfg = seg_config(shapes, **{"train_dataloader.batch_size": 1, "train_cfg.max_iters": 2})
    for part in cfg.model.values():
        if isinstance(part, dict) and "norm_cfg" in part:
            part.norm_cfg.type = norm
    runner = train(cfg, tmp_path / "run")
    kinds = {type(module).__name__ for module in runner.model.decode_head.modules()}
    assert "GroupNorm" in kinds and not any("BatchNorm" in kind for kind in kinds)
