"""Timing what does the same work side by side: interleaved repetitions, peak memory, and the machine named.

The cases themselves are in bench_scan.py and bench_models.py.
"""

import datetime
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.autograd.profiler import profile

from arm_backbone.ops import resolve_backend
from arm_backbone.ops.cpu import library as native

from ..errors import ConfigError
from ..machine import cpu_name

SHORTEST = 0.005  # seconds of one measurement; what is quicker is called several times in a row, caches warm
FEWEST = 3  # rounds, however long they take
CURVE = 3  # sizes from which on an exponent is fitted

MEMORY = {
    "cpu": "above weights and inputs; tensors alone (torch.profiler's record), without scratch memory of libraries",
    "cuda": "above weights and inputs; torch.cuda.max_memory_allocated",
}


@dataclass(frozen=True)
class Setting:
    """Where cases run; `dtype` is that of the scan's inputs, and of autocast elsewhere."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    batch: int = 1

    @property
    def type_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device)


@dataclass
class Candidate:
    """One way to do the work of a case.

    Attributes:
        work: of one run, in the case's unit.
        scales: whether work grows with the case's size, so that times at several sizes make a curve.
        memory: whether peak memory can be measured.
    """

    name: str
    run: Callable[[], object]
    work: float = 1.0
    scales: bool = True
    memory: bool = True


@dataclass
class Case:
    """What is timed side by side; times are compared with the first candidate's, for the same amount of work.

    Attributes:
        kind: what is done; cases of one kind and several sizes make a curve.
        size: on the curve's axis, in `axis`.
        title: the size in words.
        unit: what work is counted in, for a column of work per second.
        tensor: name and bytes of a tensor, for a column of memory in such tensors.
        memory: whether peak memory is measured.
        notes: what was left out and why.
    """

    kind: str
    size: int
    axis: str
    title: str
    candidates: list[Candidate]
    unit: str | None = None
    tensor: tuple[str, int] | None = None
    memory: bool = True
    notes: list[str] = field(default_factory=list)


def resolved(setting: Setting, backends: Iterable[str]) -> list[str]:
    """Names of scan back ends, each once, "auto" as what it stands for; a ConfigError for one that cannot run."""
    try:
        return list(dict.fromkeys(resolve_backend(setting.device, setting.dtype, name) for name in backends))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """A run's kernels alone: recorded in a CUDA graph by the first call, played back by this and all later ones."""
    graphs = []

    def play() -> None:
        if not graphs:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):  # what happens only once, such as choosing kernels
                    run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            graphs.append(graph)
        graphs[0].replay()

    return play


def with_backend(backend: str, run: Callable[[], object]) -> Callable[[], object]:
    """The run with a scan back end of its own."""

    def chosen() -> object:
        before = os.environ.get("ARM_SCAN_BACKEND")
        os.environ["ARM_SCAN_BACKEND"] = backend
        try:
            return run()
        finally:
            del os.environ["ARM_SCAN_BACKEND"]
            if before is not None:
                os.environ["ARM_SCAN_BACKEND"] = before

    return chosen


def interleave(
    runs: dict[str, Callable[[], object]],
    seconds: float,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of a call, once a round for every run.

    Each is called once beforehand, to see how many calls make a measurement of `SHORTEST`. Rounds go on until `seconds`
    are over or there are `repeats`; unless that is fewer, there are at least `FEWEST`.
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
    """Bytes of tensors that a run holds at most, above what was there before it; what it returns is included."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or it complains where there is no GPU
    with profile(profile_memory=True) as record:
        run()
    events = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())], dtype=np.int64)
    return max(0, int(held.max(initial=0)))


def measure(case: Case, device: torch.device, seconds: float, repeats: int) -> list[dict]:
    """One row for each candidate; one that runs out of memory becomes a note.

    Returns:
        dicts of kind, size, axis, candidate, scales, seconds (median), quartiles, repetitions, baseline, ratio (of the
        time for the same work to the baseline's) and, where the case has them, unit, per_second, peak_bytes, tensor,
        tensors.
    """
    peaks = {}
    for candidate in case.candidates.copy():
        try:
            candidate.run()  # compiles, chooses kernels, makes an optimiser's state
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
        rows.append(row)
    return rows


def run_cases(
    cases: Iterable[Case], device: torch.device, seconds: float, repeats: int, show: Callable[[str], None]
) -> list[dict]:
    """Measure case after case, showing each one's table when it is done, the exponents last; the rows of all."""
    rows = []
    for case in cases:
        measured = measure(case, device, seconds, repeats)
        show(f"\n{case.kind}, {case.title}\n")
        if measured:
            show(table(measured))
        for note in case.notes:
            show(f"\nNot run: {note}.")
        rows += measured
    fitted = exponents(rows)
    if fitted:
        show(f"\nTime grows as a power of the {rows[0]['axis']}:\n\n| | exponent |\n| --- | ---: |")
        for (kind, candidate), exponent in fitted.items():
            show(f"| {kind}, {candidate} | {exponent:.2f} |")
    return rows


def table(rows: list[dict]) -> str:
    """The rows of one case as markdown."""
    first = rows[0]
    heads = ["", "ms", "quartiles", "times", f"time ÷ {first['baseline']}"]
    heads += [first["unit"]] if "unit" in first else []
    heads += ["peak MB"] if "peak_bytes" in first else []
    heads += [f"peak ÷ {first['tensor']}"] if "tensor" in first else []
    lines = ["| " + " | ".join(heads) + " |", "| --- " + "| ---: " * (len(heads) - 1) + "|"]
    for row in rows:
        low, high = (1e3 * q for q in row["quartiles"])
        cells = [row["candidate"], f"{1e3 * row['seconds']:.3f}", f"{low:.3f} to {high:.3f}"]
        cells += [str(row["repetitions"]), f"{row['ratio']:.3g}"]
        cells += [f"{row['per_second']:.3g}"] if "per_second" in row else []
        if "peak_bytes" in first:
            cells.append(f"{row['peak_bytes'] / 1e6:.1f}" if "peak_bytes" in row else "–")
        if "tensors" in first:
            cells.append(f"{row['tensors']:.2f}" if "tensors" in row else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curves(rows: list[dict]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(kind, candidate) -> (size, seconds), for what was measured at several sizes."""
    found: dict = {}
    for row in filter(itemgetter("scales"), rows):
        found.setdefault((row["kind"], row["candidate"]), []).append((row["size"], row["seconds"]))
    return {key: sorted(points) for key, points in found.items() if len({size for size, _ in points}) > 1}


def exponents(rows: list[dict]) -> dict[tuple[str, str], float]:
    """(kind, candidate) -> p of the fit seconds = c size^p by least squares, where there are `CURVE` sizes or more."""
    fitted = {}
    for key, points in curves(rows).items():
        if len({size for size, _ in points}) >= CURVE:
            fitted[key] = float(np.polyfit(*np.log(points).T, 1)[0])
    return fitted


def machine(device: torch.device) -> dict:
    """What the numbers were measured on and with."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about = dict(cpu=cpu_name(), cores=cores, threads=torch.get_num_threads())
    if native.unavailable() is None:
        about["instruction_set"] = native.instruction_set()
    else:
        about["instruction_set"] = "PyTorch's own (the CPU kernels are not built)"
    about["scan_backend"] = resolved(Setting(device), ["auto"])[0]
    about["memory_gb"] = round(memory(torch.device("cpu")) / 1e9, 1)
    about["gpu"] = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    about.update(python=platform.python_version(), torch=torch.__version__, commit=_commit())
    about.update(date=datetime.datetime.now().astimezone().isoformat(timespec="minutes"), load=os.getloadavg()[0])
    about["peak_memory"] = MEMORY[device.type]
    return about


def memory(device: torch.device) -> int:
    """Bytes that a machine or a GPU has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def busy(about: dict) -> str | None:
    """A warning if others leave fewer cores free than are used here."""
    if about["load"] + about["threads"] <= about["cores"] + 0.5:
        return None
    return (
        f"the machine is busy: a load of {about['load']:.1f} on {about['cores']} cores before this began, and threads: "
        f"{about['threads']}; do not trust the times, and the ratios less than usual"
    )


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def plot(rows: list[dict], about: dict, path: str) -> None:
    """Time against size where there are several sizes, otherwise bars; one panel for each kind.

    Args:
        path: of a PNG file.
    """
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure = Figure(figsize=(6 * len(kinds), 4.5), layout="constrained")
    drawn = curves(rows)
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds):
        of_kind = {name: points for (which, name), points in drawn.items() if which == kind}
        axes.set_title(kind)
        if of_kind:
            for name, points in of_kind.items():
                sizes, seconds = zip(*points)
                axes.loglog(sizes, [1e3 * s for s in seconds], marker="o", label=name)
            axes.set_xticks(sizes, sizes)
            axes.set_xticks([], minor=True)
            axes.set(xlabel=rows[0]["axis"], ylabel="ms")
            axes.legend()
        else:
            shown = [row for row in rows if row["kind"] == kind]
            bars = axes.barh([row["candidate"] for row in shown], [1e3 * row["seconds"] for row in shown])
            axes.bar_label(bars, [f" {1e3 * row['seconds']:.3g} ({row['ratio']:.3g})" for row in shown])
            axes.invert_yaxis()
            axes.margins(x=0.3)
            axes.set(xlabel=f"ms (and time ÷ {shown[0]['baseline']})")
    figure.suptitle(f"{about['gpu'] or about['cpu']}, threads: {about['threads']}, torch {about['torch']}", fontsize=9)
    figure.savefig(path, dpi=120, format="png")
