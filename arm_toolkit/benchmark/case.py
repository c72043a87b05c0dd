"""What the benchmark times: candidates that do the same kind of work, and the setting in which they run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from arm_backbone.ops import resolve_backend, scan_backend
from arm_backbone.scan_order import scan_orders

from ..analysis.work import Work
from ..errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """The setting in which cases run; `dtype` is that of the scan's inputs, and of autocast in all other cases."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    batch: int = 1

    @property
    def type_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device)


@dataclass(frozen=True)
class Grid:
    """A grid of tokens, optionally with a class token in the middle of the sequence."""

    height: int
    width: int
    cls_token: bool = False

    @property
    def tokens(self) -> int:
        return self.height * self.width + self.cls_token

    def orders(self, scans: int, device: torch.device) -> Tensor:
        return scan_orders(self.height, self.width, scans, "middle" if self.cls_token else None, device)

    def __str__(self) -> str:
        return f"{self.height} x {self.width}{' + 1' if self.cls_token else ''} = {self.tokens} tokens"


@dataclass
class Candidate:
    """One way to do the work of a case.

    Attributes:
        work: amount of work in one run, in the case's unit.
        scales: whether the work grows with the case's size, so that times at several sizes form a curve.
        memory: whether peak memory can be measured.
        counted: what it computes for one unit of work, by count.
    """

    name: str
    run: Callable[[], object]
    work: float = 1.0
    scales: bool = True
    memory: bool = True
    counted: Work | None = None


@dataclass
class Case:
    """Candidates that are timed side by side; times are relative to the first candidate, for the same amount of work.

    Attributes:
        kind: what is done, e.g. "forward"; cases of one kind at several sizes form a curve.
        size: position on the curve's axis.
        axis: name of that axis.
        title: the size in words.
        unit: unit of the work, for a column of work per second.
        tensor: name and bytes of a tensor, for a column of memory in multiples of it.
        memory: whether peak memory is measured.
        notes: candidates that were skipped, and why.
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
    """Names of scan back ends without repetition, "auto" replaced by the back end that it selects.

    Raises:
        ConfigError: if one of them cannot run.
    """
    try:
        return list(dict.fromkeys(resolve_backend(setting.device, setting.dtype, name) for name in backends))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def with_backend(backend: str, run: Callable[[], object]) -> Callable[[], object]:
    """The same run, on a given scan back end."""

    def chosen() -> object:
        with scan_backend(backend):
            return run()

    return chosen


def launched_and_captured(name: str, run: Callable[[], object], setting: Setting, work: float = 1.0) -> list[Candidate]:
    """A run, and on a GPU also its kernels alone ("graph"): with small batches the GPU waits for launches."""
    candidates = [Candidate(name, run, work)]
    if setting.device.type == "cuda":
        candidates.append(Candidate(f"{name}, graph", captured(run), work, memory=False))
    return candidates


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The kernels of a run without their launches: the first call captures a CUDA graph, and every call replays it."""
    graphs = []

    def play() -> None:
        if not graphs:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):  # warm-up: compilation and the choice of kernels happen only once
                    run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            graphs.append(graph)
        graphs[0].replay()

    return play
