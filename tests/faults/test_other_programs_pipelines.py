"""Other people's clients read our configurations and checkpoints, from any folder."""

import copy
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner

from arm_backbone.checkpoint.files import CheckpointError, read_checkpoint
from arm_toolkit.datasets.transforms import checked_loading
from arm_toolkit.inference.openmmlab import for_openmmlab
from arm_toolkit.inference.publish import Statements, publish
from tests.helpers.runs import det_config, seg_config, train
from tests.helpers.tools import own_globals

pytestmark = pytest.mark.xdist_group("clients")


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory) -> dict:
    """Task -> (checkpoint with its configuration, model, image, the model's results on it after our test pipeline)."""
    found = {}
    for task, config, folder in (
        ("det", det_config(shapes), "coco/val2017"),
        ("seg", seg_config(shapes), "ade/images/validation"),
    ):
        run = tmp_path_factory.mktemp(task) / "run"
        if task == "det":
            config.train_cfg.max_epochs = 1
        else:
            config.train_cfg.max_iters = 4
        runner = train(config, run)
        image = str(sorted((shapes / folder).iterdir())[0])
        file = next(Path(line.strip()) for line in (run / "last_checkpoint").read_text().splitlines())
        found[task] = file, runner.model.eval(), image, ours(runner, image)
    return found


def ours(runner, image: str):
    """The result of the runner's model on an image, read as in tools/test.py."""
    scope = runner.cfg.default_scope
    dataset = checked_loading(runner.cfg.test_dataloader, scope).dataset
    with own_globals(), DefaultScope.overwrite_default_scope(scope):
        item = DATASETS.build(dict(dataset, pipeline=[], lazy_init=False))
        index = next(i for i in range(len(item)) if item.get_data_info(i)["img_path"] == image)
        info = item.get_data_info(index)
        pipeline = Compose([step for step in dataset.pipeline if step.type not in ("LoadAnnotations", "LoadLabels")])
        with torch.no_grad():
            return runner.model.eval().test_step(pseudo_collate([pipeline(info)]))[0]


def same_instances(one, two) -> bool:
    return len(one.scores) > 0 and all(torch.equal(one[key], two[key]) for key in ("scores", "labels", "bboxes"))


def config_of(file: Path, folder: Path) -> str:
    """The configuration inside a checkpoint as a file of its own."""
    text = torch.load(file, weights_only=True)["meta"]["cfg"]
    path = folder / "config.py"
    path.write_text(text)
    return str(path)


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with own_globals():
        yield tmp_path


def test_mmdet_inferencer_and_inference_detector(trained, empty):
    """DetInferencer and inference_detector equal tools/test.py to the last bit."""
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    file, _, image, expected = trained["det"]
    model = init_detector(config_of(file, empty), str(file), device="cpu")
    assert same_instances(expected.pred_instances, inference_detector(model, image).pred_instances)
    inferencer = DetInferencer(config_of(file, empty), str(file), device="cpu", show_progress=False)
    result = inferencer(image, return_datasamples=True, no_save_vis=True)["predictions"][0]
    assert same_instances(expected.pred_instances, result.pred_instances)


def test_mmseg_inferencer_and_inference_model(trained, empty):
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    file, _, image, expected = trained["seg"]
    model = init_model(config_of(file, empty), str(file), device="cpu")
    result = inference_model(model, image)
    assert torch.equal(result.pred_sem_seg.data, expected.pred_sem_seg.data)
    assert torch.equal(result.seg_logits.data, expected.seg_logits.data)
    inferencer = MMSegInferencer(config_of(file, empty), str(file), device="cpu")
    assert np.array_equal(inferencer(image)["predictions"], expected.pred_sem_seg.data[0].numpy())


def test_inferencers_given_a_checkpoint_alone(trained, empty):
    """They read the configuration in it."""
    from mmdet.apis import DetInferencer
    from mmseg.apis import MMSegInferencer

    file, _, image, expected = trained["det"]
    inferencer = DetInferencer(weights=str(file), device="cpu", show_progress=False)
    result = inferencer(image, return_datasamples=True, no_save_vis=True)["predictions"][0]
    assert same_instances(expected.pred_instances, result.pred_instances)
    file, _, image, expected = trained["seg"]
    found = MMSegInferencer(None, str(file), device="cpu")(image)["predictions"]
    assert np.array_equal(found, expected.pred_sem_seg.data[0].numpy())


def test_images_in_memory(trained, empty):
    """An array in BGR, as OpenCV reads it, gives what its file gives."""
    from mmdet.apis import inference_detector, init_detector
    from mmseg.apis import inference_model, init_model

    file, _, image, expected = trained["det"]
    model = init_detector(config_of(file, empty), str(file), device="cpu")
    found = inference_detector(model, [cv2.imread(image)] * 2)
    assert all(same_instances(expected.pred_instances, one.pred_instances) for one in found)
    file, _, image, expected = trained["seg"]
    model = init_model(config_of(file, empty), str(file), device="cpu")
    found = inference_model(model, cv2.imread(image))
    assert torch.equal(found.seg_logits.data, expected.seg_logits.data)


def test_mmseg_inferencer_on_a_folder(trained, empty):
    from mmseg.apis import MMSegInferencer

    file, _, image, _ = trained["seg"]
    inferencer = MMSegInferencer(config_of(file, empty), str(file), device="cpu")
    folder = Path(image).parent
    found = inferencer(str(folder), out_dir=str(empty / "out"), show=False)["predictions"]
    files = [folder / name for name in os.listdir(folder)]  # in the inferencer's order
    assert len(found) == len(files) > 1
    for labels, path in zip(found, files, strict=True):
        assert np.array_equal(labels, inferencer(str(path))["predictions"])
    assert len(list((empty / "out" / "pred").iterdir())) == len(files)


def test_inferencers_given_a_published_folder(trained, empty):
    """Its classes and colours are known, and numbers equal tools/test.py."""
    from mmdet.apis import DetInferencer, inference_detector, init_detector
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    file, _, image, expected = trained["det"]
    publish(str(file), empty / "det", None, Statements())
    model = init_detector(*for_openmmlab(empty / "det"), device="cpu")
    assert same_instances(expected.pred_instances, inference_detector(model, image).pred_instances)
    assert model.dataset_meta["classes"] == ("disc", "square", "triangle")
    inferencer = DetInferencer(*for_openmmlab(empty / "det"), device="cpu", show_progress=False)
    result = inferencer(image, return_datasamples=True, out_dir=str(empty / "drawn"))["predictions"][0]
    assert same_instances(expected.pred_instances, result.pred_instances)
    assert (empty / "drawn/vis" / Path(image).name).is_file()
    file, _, image, expected = trained["seg"]
    publish(str(file), empty / "seg", None, Statements())
    model = init_model(*for_openmmlab(empty / "seg"), device="cpu")
    assert torch.equal(inference_model(model, image).seg_logits.data, expected.seg_logits.data)
    inferencer = MMSegInferencer(*for_openmmlab(empty / "seg"), device="cpu")
    found = inferencer(image, out_dir=str(empty / "drawn"))["predictions"]
    assert np.array_equal(found, expected.pred_sem_seg.data[0].numpy())
    assert len(inferencer.visualizer.dataset_meta["palette"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("task", ["det", "seg"])
def test_mmengines_runner_trains_and_evaluates(task, shapes, empty):
    """Our configurations need our modules, not our runner."""
    cfg = dict(det=det_config, seg=seg_config)[task](shapes, validate=True)
    cfg.work_dir = str(empty / "run")
    cfg.optim_wrapper.type = "OptimWrapper"  # mmengine's AmpOptimWrapper refuses a CPU
    for key in ("dtype", "loss_scale"):
        cfg.optim_wrapper.pop(key, None)
    for loader, images in ((cfg.train_dataloader, 8), (cfg.val_dataloader, 2)):
        loader.dataset.indices = images
    cfg.train_cfg.update(dict(max_epochs=1, val_begin=1, val_interval=1) if task == "det" else dict(max_iters=2))
    if task == "seg":
        cfg.train_cfg.update(val_interval=2, val_begin=1)
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = [line for file in (empty / "run").glob("*/vis_data/scalars.json") for line in file.open()]
    key = "coco/bbox_mAP" if task == "det" else "mIoU"
    assert any('"loss"' in line for line in scalars) and any(f'"{key}"' in line for line in scalars)
    file = (empty / "run" / "last_checkpoint").read_text().strip()
    with pytest.raises(
        CheckpointError, match=r"holds mmengine\.logging\.history_buffer\.HistoryBuffer, which can exec"
    ):
        read_checkpoint(file)


def test_analysis_tools_load_the_data_set(trained, shapes, empty):
    """As mmdet's analyze_results.py and browse_dataset.py do."""
    from mmdet.datasets.utils import get_loading_pipeline

    cfg = det_config(shapes)
    with DefaultScope.overwrite_default_scope("mmdet"):
        steps = get_loading_pipeline(copy.deepcopy(cfg.train_dataloader.dataset.pipeline))
        dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, pipeline=steps))
        assert dataset[0]["gt_bboxes"].tensor.shape[1] == 4
