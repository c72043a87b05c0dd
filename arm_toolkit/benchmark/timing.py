"""Times candidates side by side: interleaved repetitions, their medians, and peak memory."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch.autograd.profiler import profile

from .case import Case
from .results import exponent_table, table

SHORTEST = 0.005  # seconds per measurement; a faster run is called several times in a row, so its caches are warm
FEWEST = 3  # rounds, even if they take longer than the time limit


def run_cases(
    cases: Iterable[Case], device: torch.device, seconds: float, repeats: int, show: Callable[[str], None]
) -> list[dict]:
    """Measure the cases one after another and return all rows.

    Args:
        seconds, repeats: limits for each case, see `interleave`.
        show: receives the table of each case as soon as it is measured, and the table of exponents at the end.
    """
    rows = []
    for case in cases:
        measured = measure(case, device, seconds, repeats)
        show(f"\n{case.kind}, {case.title}\n")
        if measured:
            show(table(measured))
        for note in case.notes:
            show(f"\nNot run: {note}.")
        rows += measured
    fitted = exponent_table(rows)
    if fitted:
        show(f"\nTime grows as a power of the {rows[0]['axis']}:\n\n{fitted}")
    return rows


def measure(case: Case, device: torch.device, seconds: float, repeats: int) -> list[dict]:
    """One row for each candidate; a candidate that runs out of memory becomes a note.

    Returns:
        dicts with kind, size, axis, candidate, scales, seconds (median), quartiles, repetitions, baseline, ratio (time
        for the same work, relative to the baseline) and, if the case has them, unit, per_second, peak_bytes, tensor,
        tensors; of a candidate with counted work forward_flops, backward_flops and scan_steps.
    """
    peaks = {}
    for candidate in case.candidates.copy():
        try:
            candidate.run()  # compiles, chooses kernels, creates the optimizer's state
            if case.memory and candidate.memory:
                peaks[candidate.name] = peak_memory(candidate.run, device)
        except torch.OutOfMemoryError:
            case.candidates.remove(candidate)
            case.notes.append(f"{candidate.name}: out of memory")
    clock = _cuda_clock if device.type == "cuda" else time.perf_counter
    times = interleave({c.name: c.run for c in case.candidates}, seconds, repeats, clock)
    medians = {name: statistics.median(measured) for name, measured in times.items()}
    rows = []
    for candidate in case.candidates:
        name, first = candidate.name, case.candidates[0]
        ratio = medians[name] / candidate.work / (medians[first.name] / first.work)
        row = dict(kind=case.kind, size=case.size, axis=case.axis, candidate=name, scales=candidate.scales)
        row["seconds"] = medians[name]
        row.update(quartiles=np.quantile(times[name], [0.25, 0.75]).tolist(), repetitions=len(times[name]))
        row.update(baseline=first.name, ratio=ratio)
        if case.unit:
            row.update(unit=case.unit, per_second=candidate.work / medians[name])
        if name in peaks:
            row["peak_bytes"] = peaks[name]
            if case.tensor:
                tensor, size = case.tensor
                row.update(tensor=tensor, tensors=peaks[name] / size)
        if candidate.counted is not None:
            counted = candidate.counted
            row.update(forward_flops=counted.forward, backward_flops=counted.backward, scan_steps=counted.scan_steps)
        rows.append(row)
    return rows


def interleave(
    runs: dict[str, Callable[[], object]],
    seconds: float,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call all runs in turns; return, for each run, the seconds per call in each round.

    Each run is first called once, uncounted, to find how many calls make a measurement of `SHORTEST` seconds.

    Args:
        seconds: no round starts after this time, but there are at least `FEWEST` rounds.
        repeats: maximum number of rounds, which may be below `FEWEST`.
    """
    calls = {}
    for name, run in runs.items():
        start = clock()
        run()
        calls[name] = math.ceil(SHORTEST / max(clock() - start, 1e-6))
    times = {name: [] for name in runs}
    begin = clock()
    for done in range(1, repeats + 1):
        for name, run in runs.items():
            start = clock()
            for _ in range(calls[name]):
                run()
            times[name].append((clock() - start) / calls[name])
        if done >= FEWEST and clock() - begin >= seconds:
            break
    return times


def _cuda_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of tensors during a run, including its result, beyond those allocated before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler would warn about the missing GPU
    with profile(profile_memory=True) as record:
        run()
    events = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())], dtype=np.int64)
    return max(0, int(held.max(initial=0)))
