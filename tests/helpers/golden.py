"""A file of golden values: reads it in one precision, and compares results with it."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
# of the largest reference value, and absolute: the golden README's suggestion
TOLERANCE = {"float64": (1e-9, 1e-14), "float32": (2e-5, 1e-8)}


class Golden:
    """One file in one precision, and the deviations found from it.

    In float64 only what the reference ran in float64 is checked (keys out64/..., grad64.../...), and vice versa.
    """

    def __init__(self, path: Path, precision: str, deviations: dict) -> None:
        self.file, self.precision = np.load(path), precision
        self.dtype = PRECISIONS[precision]
        self.worst = deviations.setdefault(path.stem, {})
        self.checked: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        value = torch.tensor(self.file[key])
        return value.to(self.dtype) if value.is_floating_point() else value

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Float32 arrays by the rest of their names."""
        return {k.removeprefix(prefix): torch.tensor(self.file[k]) for k in self.file.files if k.startswith(prefix)}

    def check(self, key: str, result: Tensor, tolerance: tuple[float, float] | None = None) -> None:
        """`key` without the 64 of out64 or grad64."""
        if self.precision == "float64" and "/" in key and not key.startswith("c"):
            part, rest = key.split("/", 1)
            key = part.replace("out", "out64").replace("grad", "grad64") + "/" + rest
        if key in self.file.files:
            self.compare(key, result, tolerance)

    def compare(self, key: str, result: Tensor, tolerance: tuple[float, float] | None = None) -> None:
        """As `check`, for a key that exists and names the precision itself."""
        self.checked.add(key)
        expected = torch.tensor(self.file[key]).double()
        assert result.shape == expected.shape, key
        relative, absolute = tolerance or TOLERANCE[self.precision]
        largest = expected.abs().max().item()
        deviation = (result.detach().double() - expected).abs().max().item()
        worst, count = self.worst.get(self.precision, (0.0, 0))
        self.worst[self.precision] = max(worst, deviation / (largest or 1)), count + 1
        assert deviation <= relative * largest + absolute, f"{key}: {deviation:.1e} away, largest value {largest:.1e}"

    def unchecked(self) -> set[str]:
        """Results of the reference in this precision that `check` has not been called for."""
        wide = self.precision == "float64"
        parts = {key: key.split("/")[0] for key in self.file.files if key.startswith(("out", "grad"))}
        return {key for key, part in parts.items() if ("64" in part) == wide} - self.checked
