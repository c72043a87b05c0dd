"""ReconstructionHook: losses by cluster position and figures, in TensorBoard and in the work dir."""

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from arm_pretrain import ARMPretrainer
from arm_toolkit.errors import ConfigError
from tests.helpers.runs import logged, pretrain_config, train
from tests.helpers.small_models import pretrainer


def test_losses_and_figures_are_in_tensorboard_and_in_the_work_dir(shapes, tmp_path):
    cfg = pretrain_config(shapes)
    hook = next(hook for hook in cfg.custom_hooks if hook.type == "ReconstructionHook")
    hook.update(path=str(shapes / "coco/val2017"), interval=3, drawn=2)
    train(cfg, tmp_path / "run")  # 4 epochs of 4 iterations
    folder = next((tmp_path / "run").glob("*/vis_data"))
    events = EventAccumulator(str(folder)).Reload()
    for position in range(2, 10):
        steps = {event.step: event.value for event in events.Scalars(f"position/cluster_{position}")}
        assert sorted(steps) == [12, 16] and all(0 < loss < 3 for loss in steps.values())
    assert [event.step for event in events.Images("reconstruction")] == [12, 16]
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx({step: line["loss"] for step, line in logged(tmp_path / "run").items()})
    assert len(events.Scalars("grad_norm")) == 16
    figures = sorted((folder / "vis_image").glob("reconstruction_*.png"))
    assert [p.stem for p in figures] == ["reconstruction_12", "reconstruction_16"]
    first, last = (np.asarray(Image.open(p)) for p in figures)
    assert first.shape == last.shape and (first != last).any()


@HOOKS.register_module()
class Surroundings(Hook):
    """Records what ReconstructionHook must not change: the mode of the model and the random state."""

    priority = "HIGH"  # its after_train_epoch runs before ReconstructionHook's, and its after_train later

    def __init__(self) -> None:
        self.seen = []

    def after_train_epoch(self, runner) -> None:
        self.seen.append((runner.model.training, torch.get_rng_state()))

    def after_train(self, runner) -> None:
        self.seen.append((runner.model.training, torch.get_rng_state()))


def test_the_hook_leaves_mode_and_random_state(shapes, tmp_path):
    cfg = pretrain_config(shapes, **{"model.order": "random", "train_cfg.max_epochs": 1, "param_scheduler.warmup": 0})
    cfg.custom_hooks.append(dict(type="Surroundings"))
    runner = train(cfg, tmp_path)
    (before, state), (after, later) = next(h.seen for h in runner.hooks if isinstance(h, Surroundings))
    assert before and after and torch.equal(state, later)


def test_the_hook_changes_no_weight(shapes, tmp_path):
    watched = pretrain_config(shapes, **{"model.order": "random", "train_cfg.max_epochs": 2})
    watched.custom_hooks[1].interval = 1
    alone = pretrain_config(shapes, **{"model.order": "random", "train_cfg.max_epochs": 2})
    alone.custom_hooks = alone.custom_hooks[:1]
    for name, cfg in (("watched", watched), ("alone", alone)):
        train(cfg, tmp_path / name)
    one, two = (torch.load(tmp_path / d / "epoch_2.pth", weights_only=True)["state_dict"] for d in ("watched", "alone"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_keep_best_also_in_a_resumed_run(shapes, tmp_path, monkeypatch):
    cfg = pretrain_config(shapes, **{"default_hooks.checkpoint.interval": 1})  # 4 epochs
    cfg.custom_hooks[1].update(interval=1, keep_best=True)
    values = iter([3.0, 1.0, 2.0, 2.0])
    monkeypatch.setattr(ARMPretrainer, "losses_by_position", lambda *_: dict(cluster_2=next(values)))
    train(cfg, tmp_path)
    best = torch.load(tmp_path / "best.pth", weights_only=True)
    assert best["meta"]["epoch"] == 2 and "optimizer" not in best
    second = torch.load(tmp_path / "epoch_2.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(best["state_dict"][key], value) for key, value in second.items())
    for later, epoch in (([1.5, 1.2], 2), ([1.5, 0.5], 4)):
        values = iter(later)
        train(cfg, tmp_path, "--resume", str(tmp_path / "epoch_2.pth"))
        assert torch.load(tmp_path / "best.pth", weights_only=True)["meta"]["epoch"] == epoch


@pytest.mark.parametrize(
    "argument, message",
    [
        (dict(given=0), "given=0: give at least 1"),
        (dict(path="nowhere"), "ReconstructionHook.path: nowhere does not exist"),
    ],
)
def test_wrong_arguments_stop_before_the_first_step(argument, message, shapes, tmp_path):
    cfg = pretrain_config(shapes)
    cfg.custom_hooks[1].update(argument)
    with pytest.raises(ConfigError, match=message):
        train(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_without_reconstructions_is_one_line(shapes, tmp_path, monkeypatch):
    monkeypatch.delattr(ARMPretrainer, "reconstruct")
    with pytest.raises(ConfigError, match="ARMPretrainer does not implement .*Reconstructs; remove the hook"):
        train(pretrain_config(shapes), tmp_path / "run")


def test_too_few_images_for_a_sequence(shapes, tmp_path):
    cfg = pretrain_config(shapes, **{"model.images_per_sequence": 4})
    few = tmp_path / "few"
    few.mkdir()
    Image.new("RGB", (96, 96)).save(few / "one.png")
    cfg.custom_hooks[1].path = str(few)
    with pytest.raises(ConfigError, match="has 1 images and count=64; both must be at least the 4 of a sequence"):
        train(cfg, tmp_path / "run")


@pytest.mark.parametrize("separator", [None, dict(type="cluster", value="ones", position="CSC")])
def test_the_mean_over_positions_is_the_loss(separator):
    model = pretrainer(separator=separator, images_per_sequence=2)
    images = torch.randn(4, 3, *model.encoder.img_size, dtype=torch.float64)
    by_position = model.losses_by_position(images)
    elements = model.sequences[2].targets
    names = ["separator" if e.step < 0 else f"cluster_{e.step + 1}" for e in elements]
    assert sorted(set(names)) == sorted(by_position)
    mean = sum(by_position[name] for name in names) / len(names)  # all elements have the same number of tokens
    assert model(images, mode="loss")["loss"].item() == pytest.approx(mean, rel=1e-5)
