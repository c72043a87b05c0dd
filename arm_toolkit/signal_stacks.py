"""Keeps signal handlers from writing into matrices that oneDNN multiplies.

Before version 3.11.2, oneDNN's float32 kernels for small matrices let the stack pointer point into their workspace. A
signal that is handled meanwhile (Ctrl-C, the end of a data worker) writes there: the product is wrong, and the memory
beside it is overwritten (uxlfoundation/oneDNN, issue 4845).
"""

import ctypes
import signal
import sys
import threading

import torch

SIZE = 256 * 1024  # bytes; the processor's registers alone take up to 11 KiB
DISABLED = 2  # SS_DISABLE of signal.h
OF_A_THREAD = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGABRT", "SIGSYS")  # its own errors


class _Stack(ctypes.Structure):
    """`stack_t` of Linux's signal.h."""

    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def separate_signal_stacks() -> bool:
    """Make signals safe while this process multiplies; returns whether they are.

    The main thread, which handles a process's signals, gets a stack for them, which Python's handlers use. PyTorch's
    threads, if this call starts them, block signals. It must be called in the main thread of a process on Linux.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return False
    if not _has_stack() and not _give_stack():
        return False
    blocked = signal.valid_signals() - {getattr(signal, name) for name in OF_A_THREAD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        torch.ones(2**15 * torch.get_num_threads(), device="cpu")  # large enough for all of its threads
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return True


def _has_stack() -> bool:
    stack = _Stack()
    return ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0 and not stack.flags & DISABLED


def _give_stack() -> bool:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    start = libc.malloc(SIZE)  # never freed: signals come until the process has ended
    return bool(start) and libc.sigaltstack(ctypes.byref(_Stack(start, 0, SIZE)), None) == 0
