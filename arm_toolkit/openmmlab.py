"""Registers the toolkit with mmengine: every configuration names this module in `custom_imports`.

| module | registers |
| --- | --- |
| `analysis.reconstruction_hook` | ReconstructionHook |
| `datasets.samplers` | SeededSampler, SeedSample |
| `datasets.transforms` | LoadImage, LoadLabels |
| `engine.batches_hook` | BatchesHook |
| `engine.checkpoint_hook` | SafeCheckpointHook |
| `engine.ema_hook` | WeightEMAHook |
| `engine.finite_hook` | FiniteHook |
| `engine.hooks` | ThroughputHook, SeedIterationHook, SameBuffersHook, SkippedFilesHook, OneFileLoggerHook |
| `engine.loops` | ResumableEpochLoop |
| `engine.optim_wrapper` | CPUAmpOptimWrapper, AutoAmpOptimWrapper |
| `engine.early_stop_hook` | EarlyStopHook |
| `engine.runner` | ARMRunner, CPUDistributedDataParallel |

The following modules are not imported here. Only the configurations that need them name them:

| module | registers | needs |
| --- | --- | --- |
| `models.float32_heads` | Float32RPNHead, Float32RoIExtractor | mmdet |
| `models.instance_tta` | InstanceTTAModel | mmdet |
| `datasets.class_folder` | ClassFolder | |
| `datasets.coco`, `evaluation.coco` | ARMCocoDataset, ARMCocoMetric (`engine.check_classes` imports them) | mmdet |
| `datasets.segmentation` | ARMSegDataset, ARMADE20KDataset (imported likewise) | mmseg |
| `models.mixup` | MixupPreprocessor | |
| `evaluation.accuracy` | Accuracy | |
"""

from .analysis import reconstruction_hook  # noqa: F401
from .datasets import samplers, transforms  # noqa: F401
from .engine import (  # noqa: F401
    batches_hook,
    checkpoint_hook,
    early_stop_hook,
    ema_hook,
    finite_hook,
    hooks,
    loops,
    optim_wrapper,
    runner,
)
