"""How a gateway, which lives for months, keeps its memory."""

import ctypes
import gc

M_ARENA_MAX = -8  # of glibc's malloc.h


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
    # Python puts off a full search until the young objects are a quarter of what the last one left: one of
    # what has not been frozen, which is next to nothing, has the later ones run when they are due.
    gc.collect()
