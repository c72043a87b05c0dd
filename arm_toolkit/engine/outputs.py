"""Adds to a configuration what `--out` and `--show-dir` of tools/test.py ask for."""

import importlib
import os
from pathlib import Path

from mmengine.config import Config

from ..errors import ConfigError
from . import saved_results  # noqa: F401 registers what tests save with
from .checks import dicts


def save_results(cfg: Config, out: str) -> None:
    """Make the evaluators save label maps as PNG in the folder `out` (segmentation), else one file `out`.

    Raises:
        ConfigError: if `out` does not fit the task.
    """
    kind = Path(out).suffix
    if cfg.default_scope == "mmseg":
        if kind:
            raise ConfigError(f"--out {out}: segmentation writes one label map per image; give a folder")
        _add_metric(cfg, type="SaveLabelMaps", folder=out)
        return
    if kind not in (".json", ".pkl", ".pickle"):
        raise ConfigError(f"--out {out}: all predictions go into one file; give a name ending in .json or .pkl")
    if cfg.default_scope == "mmdet":
        importlib.import_module("arm_toolkit.engine.saved_instances")
        if kind == ".json":
            _add_metric(cfg, type="SaveCocoResults", file=out, ann_file=_annotation_file(cfg, out))
        else:
            _add_metric(cfg, type="SaveInstances", out_file_path=out)
    elif kind == ".json":
        dataset = cfg.test_dataloader.dataset
        where = {key: dataset[key] for key in ("data_root", "split", "classes_from", "ann_file") if key in dataset}
        _add_metric(
            cfg, type="SaveClassScores", file=out, class_folder=where if dataset.get("type") == "ClassFolder" else None
        )
    else:
        _add_metric(cfg, type="SaveResults", out_file_path=out)


def _annotation_file(cfg: Config, out: str) -> str:
    """The COCO file of the test, whose image and category ids results in COCO's format hold."""
    files = [node["ann_file"] for node in dicts(cfg.test_evaluator) if node.get("ann_file")]
    if not files:
        raise ConfigError(f"--out {out}: test_evaluator has no ann_file, whose ids the results need; give a .pkl file")
    return files[0]


def _add_metric(cfg: Config, **metric) -> None:
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list | tuple) else [cfg.test_evaluator]
    cfg.test_evaluator = [*evaluators, metric]


def draw(cfg: Config, show_dir: str) -> None:
    """Make a hook draw every test image with its predictions into a folder.

    Raises:
        ConfigError: for classification.
    """
    show_dir = os.path.abspath(show_dir)
    if cfg.default_scope == "mmseg":
        cfg.visualizer.save_dir = show_dir
        cfg.default_hooks.visualization = dict(type="SegVisualizationHook", draw=True, interval=1)
    elif cfg.default_scope == "mmdet":
        cfg.default_hooks.visualization = dict(type="DetVisualizationHook", draw=True, test_out_dir=show_dir)
    else:
        raise ConfigError(f"--show-dir {show_dir}: classification results are not drawn; use --out to save the logits")
    hook = dict(type="WholeDrawingsHook", folder=os.path.join(show_dir, "vis_data", "vis_image"))
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or ()), hook]
