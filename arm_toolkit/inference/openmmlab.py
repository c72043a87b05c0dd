"""Gives a published folder to mmdet's and mmseg's own inferencers.

Importing this module lets mmengine's loaders read safetensors files; they know none.
"""

import os
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from arm_backbone.checkpoint.files import model_state, read_checkpoint

from .published import is_published, read_published


def for_openmmlab(folder: str | os.PathLike) -> tuple[Config, str]:
    """Configuration and weights of a published folder, or of `hf://OWNER/NAME`, for loaders of mmdet and mmseg.

    Example:
        inferencer = DetInferencer(*for_openmmlab("published/nuts"))
        model = init_model(*for_openmmlab("hf://OWNER/NAME"), device="cpu")

    Nothing in the folder is executed.

    Raises:
        CheckpointError, ConfigError: see `read_published`.
    """
    published = read_published(folder)
    return published.config, str(published.weights)


def load_from_safetensors(filename: str, map_location: object = None) -> dict:
    """A safetensors file as mmengine expects a checkpoint, on the CPU; of a published folder with its classes."""
    meta, folder = {}, Path(filename).parent
    if is_published(folder):
        published = read_published(folder)
        meta = dict(dataset_meta=dict(classes=tuple(published.classes), palette=published.palette))
    return dict(state_dict=model_state(read_checkpoint(filename), where=filename), meta=meta)


CheckpointLoader.register_scheme(prefixes=r".*\.safetensors$", loader=load_from_safetensors, force=True)
