"""Lines and warnings that ask nothing of a user stay off the console."""

import torch
from torch.utils.data import DataLoader

from arm_toolkit.engine.config import load_config
from tests.helpers.paths import ROOT


def test_pinned_memory_without_a_gpu_is_no_warning(recwarn, monkeypatch):
    """Configurations made for GPUs pin memory; without one PyTorch does not, and warns."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    cfg = load_config(str(ROOT / "pretrain/configs/arm_b.py"), {})
    assert cfg.train_dataloader.pin_memory
    recwarn.clear()
    assert len(list(DataLoader([1.0, 2.0], pin_memory=True))) == 2
    assert not [str(warning.message) for warning in recwarn]
