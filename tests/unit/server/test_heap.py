"""The gateway's threads share one heap, and its garbage does not gather."""

import platform
import subprocess
import sys

import pytest

# Each thread keeps its blocks until the allocator has told what it holds.
ALLOCATE = """
import ctypes, threading
from nst_server.gateway import heap
{first}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(5)
def allocate():
    together.wait()
    for _ in range(100):
        libc.malloc(5000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
together.wait()
together.wait()
libc.malloc_stats()
"""


def arenas(first: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", ALLOCATE.format(first=first)], capture_output=True, text=True, timeout=60, check=True
    )
    return sum(line.startswith("Arena ") for line in run.stderr.splitlines())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such setting")
def test_threads_share_one_heap():
    assert arenas("") > 1
    assert arenas("heap.use_one_arena()") == 1


# Of the last hundred things made some are always in use: they live long enough to grow old.
MAKE_GARBAGE = """
import collections, gc
import nst_server.gateway.app
from nst_server.gateway import heap
heap.set_aside_what_is_loaded()
before = gc.get_stats()[2]["collections"]
recent = collections.deque(maxlen=100)
for _ in range(200_000):
    ring = []
    ring.append(ring)
    recent.append(ring)
print(gc.get_stats()[2]["collections"] - before)
"""


def test_garbage_that_grew_old_is_searched_for_although_much_was_set_aside():
    run = subprocess.run([sys.executable, "-c", MAKE_GARBAGE], capture_output=True, text=True, timeout=60, check=True)
    assert int(run.stdout) >= 1
