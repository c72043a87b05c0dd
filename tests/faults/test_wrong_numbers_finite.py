"""Values that are not finite stop a run before the step, replace no checkpoint, and are never a right answer."""

import argparse
import math

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from arm_toolkit.engine import launch
from arm_toolkit.errors import NotFinite
from arm_toolkit.evaluation.accuracy import Accuracy
from arm_toolkit.evaluation.knn import top1, vote
from tests.helpers.runs import CONFIGS, train
from tests.helpers.tools import own_globals

NAN, INF = math.nan, math.inf


def top_k(logits: list[float], label: int) -> dict[str, float]:
    metric = Accuracy()
    metric.process(dict(data_samples=[label]), [torch.tensor(logits)])
    return metric.compute_metrics(metric.results)


@pytest.mark.parametrize(
    ("logits", "label", "right"),
    [
        ([NAN] * 3, 0, 0),
        ([1.0] * 3, 0, 100),
        ([1.0] * 3, 2, 0),
        ([0.0, NAN, 3.0], 2, 0),
        ([INF, 0.0, 0.0], 0, 0),
        ([0.0, 2.0, 2.0], 1, 100),
        ([0.0, 2.0, 2.0], 2, 0),
    ],
)
def test_accuracy_is_that_of_argmax(logits, label, right):
    """row_1: ties go to the first class, and an image with a score that is not finite is wrong."""
    assert top_k(logits, label)["top1"] == right


def test_five_best_of_ten():
    """row_1: of equal scores five classes are among the five best, not ten; with NaN none is."""
    assert [top_k([1.0] * 10, label)["top5"] for label in (0, 4, 5, 9)] == [100, 100, 0, 0]
    assert top_k([NAN] * 10, 0) == dict(top1=0, top5=0)


def test_neighbours_of_a_query_that_is_not_finite():
    """row_1: k-nearest neighbours; a query of NaN has no right answer."""
    train_features, labels = torch.eye(2), torch.tensor([0, 1])
    queries = torch.tensor([[NAN, NAN], [0.0, 1.0]])
    assert top1(vote(train_features, labels, queries, 1, 0.07), labels) == 50
    with pytest.raises(ValueError, match="1 of 2 training images are not finite"):
        vote(torch.tensor([[NAN, 0.0], [0.0, 1.0]]), labels, queries[1:], 1, 0.07)


def arguments_of_test(folder) -> argparse.Namespace:
    return argparse.Namespace(
        checkpoint=str(folder / "run/iter_8.pth"), work_dir=str(folder / "test"), out=None, show_dir=None, tta=False,
        dtype="float32", check=False, launcher="none", local_rank=0,
    )  # fmt: skip


SGD = {"optim_wrapper.optimizer": dict(_delete_=True, type="SGD", lr=1e30)}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_run_that_diverges_stops(kind, shapes, tmp_path):
    """row_2: lr 1e30 in every task: it stops, saves the batch and writes no checkpoint that is not finite."""
    cfg = CONFIGS[kind](shapes, **SGD)
    cfg.optim_wrapper.pop("clip_grad", None)
    cfg.param_scheduler = None
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=1, max_keep_ckpts=1)
    with pytest.raises(NotFinite, match="no step was taken.*--resume|is not written"):
        train(cfg, tmp_path / "run")
    for file in (tmp_path / "run").glob("iter_*.pth"):
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize(
    ("broken", "words"),
    [("loss", "the loss is nan"), ("gradient", r"gradient norm is nan .*gradients of backbone"), ("weight", "weights")],
)
def test_what_is_not_finite_is_named(broken, words, accumulated, shapes, tmp_path):
    """row_2: a NaN only in the loss (a constant), in a gradient, in a weight that the loss does not read."""

    @HOOKS.register_module(force=True)
    class Break(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter != 2:
                return
            model = runner.model
            if broken == "loss":
                model.loss = lambda *args, loss=model.loss: dict(loss(*args), loss_odd=torch.tensor(NAN))
            elif broken == "gradient":
                model.backbone.blocks[0].mixer.D.register_hook(lambda gradient: gradient * NAN)
            else:
                with torch.no_grad():
                    model.decode_head.fpn_bottleneck.conv.weight[0, 0] = NAN
                model.loss = lambda *args: dict(loss=sum(p.sum().nan_to_num() for p in model.parameters()) * 0.0 + 1.0)

    cfg = CONFIGS["seg"](shapes, **{"optim_wrapper.accumulative_counts": accumulated})
    cfg.custom_hooks = [dict(type="Break")]
    with pytest.raises(NotFinite, match=f"{words}.* no step was taken; the batch of .*(png|jpg)"):
        train(cfg, tmp_path / "run")
    assert not list(tmp_path.glob("run/iter_*.pth"))
    assert torch.load(tmp_path / "run/non_finite_batch_0.pth", weights_only=True)["files"]


def test_label_maps_of_nan_are_no_score(shapes, tmp_path):
    """row_2: a segmentor whose scores are NaN has no mIoU: its argmax would be class 0 everywhere."""
    cfg = CONFIGS["seg"](shapes, validate=True)
    train(cfg, tmp_path / "run")

    @HOOKS.register_module(force=True)
    class Overflow(Hook):
        def before_test(self, runner):
            runner.model.decode_head.conv_seg.register_forward_hook(lambda module, inputs, output: output * NAN)

    cfg.custom_hooks = [dict(type="Overflow")]
    with pytest.raises(NotFinite, match=r"g: the model's scores are not finite"), own_globals():
        launch.test(cfg, arguments_of_test(tmp_path), "seg")
