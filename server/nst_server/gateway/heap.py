"""How a gateway, which lives for months, keeps its memory."""

import asyncio
import ctypes
import gc

M_ARENA_MAX = -8  # of glibc's malloc.h
TIDY_SECONDS = 5.0


def use_one_arena() -> None:
    """Has all threads allocate from one heap; where the C allocator is not glibc's, does nothing.

    A heap for each thread fills with gaps that the others cannot use: the process grew for as long as
    it was watched. It works for threads that allocate for the first time after it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_ARENA_MAX, 1)


def set_aside_what_is_loaded() -> None:
    """Spares what exists by now from the search for garbage, which stops every call for 30 ms a time."""
    gc.collect()
    gc.freeze()


async def keep_tidy() -> None:
    """Tidies every few seconds, for ever."""
    while True:
        await asyncio.sleep(TIDY_SECONDS)
        tidy()


def tidy() -> None:
    """Collects garbage and returns free pages to the system, in a millisecond where little has been made.

    Left to themselves, cycles lie about for minutes between blocks that stay, and glibc returns only what is free
    at the heap's end: the pages between were never returned, and ever more of them were touched.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
