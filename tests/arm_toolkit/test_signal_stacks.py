"""Signals that arrive while oneDNN multiplies change neither the product nor the memory beside it."""

import os
import subprocess
import sys
import threading

import pytest

from arm_toolkit.signal_stacks import separate_signal_stacks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are Linux's")

# A child process sends signals to its parent; the parent multiplies matrices for which oneDNN uses those kernels.
MULTIPLIES = """
import itertools, os, signal, sys, time, torch
from arm_toolkit.signal_stacks import separate_signal_stacks
torch.set_num_threads(2)
assert separate_signal_stacks()
torch.set_float32_matmul_precision("medium")
signals, handled = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH), []
for number in signals:
    signal.signal(number, lambda number, frame: handled.append(number))
torch.manual_seed(0)
factors = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in ((37, 192, 192), (74, 256, 256), (8, 512, 512))]
products = [a @ b for a, b in factors]
child = os.fork()
if not child:
    for number in itertools.cycle(signals):
        time.sleep(5e-5)
        if os.getppid() == 1:
            os._exit(0)
        os.kill(os.getppid(), number)
try:
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert all(torch.equal(a @ b, product) for (a, b), product in zip(factors, products))
finally:
    os.kill(child, signal.SIGKILL)
assert len(handled) > 100
"""

THREADS = """
import os, threading, torch
from arm_toolkit.signal_stacks import separate_signal_stacks
torch.set_num_threads(3)
before = set(os.listdir("/proc/self/task"))
assert separate_signal_stacks()
main = str(threading.get_native_id())
for thread in {main, *os.listdir("/proc/self/task")} - (before - {main}):
    (blocked,) = [line.split()[1] for line in open(f"/proc/self/task/{thread}/status") if line.startswith("SigBlk")]
    print(thread == main, blocked)
"""


def run(program: str) -> str:
    """Its output. pytest's own process has a stack for signals already, made by faulthandler."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-1000:]}"
    return done.stdout


def test_products_under_signals():
    run(MULTIPLIES)


def test_threads_block_signals():
    lines = [line.split() for line in run(THREADS).splitlines()]
    assert [blocked for main, blocked in lines if main == "True"] == ["0000000000000000"]
    interrupt, invalid_address = 1 << 1, 1 << 10  # bits of SIGINT and SIGSEGV
    masks = [int(blocked, 16) for main, blocked in lines if main == "False"]
    assert len(masks) == 2 and all(mask & interrupt and not mask & invalid_address for mask in masks)


def test_whoever_chose_onednn():
    program = (
        "import torch; torch.set_float32_matmul_precision('medium'); from arm_toolkit import machine, signal_stacks; "
        "print(signal_stacks._has_stack()); machine.compute_faster(); print(signal_stacks._has_stack())"
    )
    assert run(program).split() == ["False", "True"]


def test_only_the_main_thread_can():
    said = []
    thread = threading.Thread(target=lambda: said.append(separate_signal_stacks()))
    thread.start()
    thread.join()
    assert said == [False]
