"""Precision of a training: found by a trial at its start, kept when it resumes."""

import pytest
import torch

from arm_toolkit.engine import optim_wrapper
from arm_toolkit.engine.optim_wrapper import AutoAmpOptimWrapper


@pytest.mark.parametrize("began", [True, False])
def test_a_resumed_run_keeps_its_precision(began, monkeypatch):
    """A trial is timed, and may decide otherwise the second time."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wrappers = []
    for decision in (began, not began):
        monkeypatch.setattr(optim_wrapper, "cpu_multiplies_bfloat16", lambda d=decision: d)
        wrappers.append(AutoAmpOptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.5)))
    first, second = wrappers
    second.load_state_dict(first.state_dict())
    linear = torch.nn.Linear(2, 2)
    with second.optim_context(linear):
        assert linear(torch.ones(1, 2)).dtype == (torch.bfloat16 if began else torch.float32)
    state = first.state_dict()
    del state["bfloat16"]  # of an earlier version
    wrappers[1].load_state_dict(state)
    assert second.enabled == began
