"""Keeping freed memory: fewer page faults, no more memory than agreed, the same results."""

from __future__ import annotations

import subprocess
import sys

import pytest

from torch_utils.ops import library

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts what Linux tells"),
    pytest.mark.skipif(not library.load(), reason=f"no compiled operators: {library.failure()}"),
]

# Each runs in a process of its own, which it prepares as it likes. MB is the resident memory of
# now.
PREAMBLE = """
import ctypes, os, re, resource, torch
from torch_utils.memory import drop_kept_memory, keep_freed_memory
torch.set_num_threads(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def MB():
    return int(re.search(r"VmRSS:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
"""


def run(code: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


def test_buffers_are_used_again() -> None:
    code = """
x = torch.zeros(4 << 20)
x.clone()
before = faults()
for _ in range(4):
    x.clone()
print(faults() - before)
"""
    (many,), (few,) = run(code), run("assert keep_freed_memory()" + code)
    assert few < many / 10


def test_no_more_is_kept_than_agreed_and_all_can_be_dropped() -> None:
    first, limited, kept, dropped = run("""
keep_freed_memory(64 << 20)
x = torch.zeros(1)
first = MB()
many = [torch.ones(4 << 20) for _ in range(10)]  # 160 MB
del many
limited = MB()
keep_freed_memory(1 << 30)
many = [torch.ones(4 << 20) for _ in range(10)]
del many
kept = MB()
drop_kept_memory()
ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for itself
print(first, limited, kept, MB())
""")
    assert limited - first < 80
    assert kept - first > 150
    assert dropped - first < 20


def test_tensors_keep_their_values_whatever_is_freed() -> None:
    """Sizes around those that are kept, made and freed in a random order; some before the cache is
    there, some freed after.
    """
    (wrong,) = run("""
import random
random.seed(0)
alive = [(value, torch.full((20_000 + 7 * value,), float(value))) for value in range(50)]
keep_freed_memory(8 << 20)
wrong = 0
for value in range(4000):
    alive.append((value, torch.full((random.randrange(1, 200_000),), float(value))))
    while len(alive) > 40:
        number, tensor = alive.pop(random.randrange(len(alive)))
        wrong += int((tensor != number).any())
print(wrong)
""")
    assert wrong == 0


def test_threads_and_forked_processes() -> None:
    (status,) = run("""
import threading
keep_freed_memory()
def work():
    for value in range(300):
        x = torch.full((30_000 + value,), float(value))
        assert bool((x.clone() == value).all())
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
children = []
for _ in range(5):  # while the threads take and give buffers
    child = os.fork()
    if child == 0:
        torch.ones(100_000).clone()
        os._exit(0)
    children.append(child)
status = sum(os.waitpid(child, 0)[1] for child in children)
for thread in threads:
    thread.join()
print(status)
""")
    assert status == 0
