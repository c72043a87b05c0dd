"""Flags that the worker processes of a data loader share with the process that started them."""

import ctypes
import multiprocessing
from collections.abc import Callable
from multiprocessing.context import get_spawning_popen

import numpy as np


class SharedFlags:
    """Booleans in shared memory.

    Workers that are forked or spawned with these flags read and write the same memory. `copy.deepcopy` and `pickle`
    copy the values into separate memory.

    Attributes:
        values: (n,) bool, a view of the shared memory.
    """

    def __init__(self, count: int) -> None:
        self._use(multiprocessing.RawArray(ctypes.c_bool, count))

    def _use(self, memory: ctypes.Array) -> None:
        self._memory = memory
        self.values = np.frombuffer(memory, dtype=bool)

    def __reduce__(self) -> tuple[Callable, tuple]:
        if get_spawning_popen() is not None:  # a worker is being spawned; only then can memory itself be pickled
            return _attached, (self._memory,)
        return _copied, (self.values.copy(),)


def _attached(memory: ctypes.Array) -> SharedFlags:
    flags = SharedFlags.__new__(SharedFlags)
    flags._use(memory)
    return flags


def _copied(values: np.ndarray) -> SharedFlags:
    flags = SharedFlags(len(values))
    flags.values[:] = values
    return flags
