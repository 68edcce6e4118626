"""The gateway's threads share one heap, and it keeps no more than it needs."""

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


# The pieces are garbage, but for one of every hundred, the last among them, so that the heap's end stays where it is.
LEAVE_GAPS = """
import psutil
from nst_server.gateway import heap
resident = lambda: psutil.Process().memory_info().rss / 2**20
pieces = [bytearray(1000) for _ in range(100_000)]
kept = pieces[99::100]
pieces.append(pieces)
del pieces
before = resident()
heap.tidy()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators do it themselves, or not at all")
def test_free_pages_between_pieces_in_use_are_given_back():
    run = subprocess.run([sys.executable, "-c", LEAVE_GAPS], capture_output=True, text=True, timeout=60, check=True)
    assert float(run.stdout) > 50  # of 95 MiB
