"""Comparing the weights of two checkpoints."""

from pathlib import Path

import torch

from arm_backbone.checkpoint.files import read_checkpoint


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def assert_same_weights(one: Path, other: Path, **tolerance) -> None:
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    # A bias before a GroupNorm with one channel per group has no effect: its gradient is rounding noise, which differs
    # between processes, and AdamW turns it into full steps.
    for name in one.keys() - {"neck.0.scales.0.0.bias"}:
        torch.testing.assert_close(one[name], other[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")
