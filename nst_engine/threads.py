"""The threads that torch computes in, for others to compute in too."""

import ctypes
import os
from functools import cache

import torch  # noqa: F401 - it brings them


@cache
def gnu_threads() -> ctypes.CDLL:
    """GNU's OpenMP, with the threads that torch has of it.

    Raises:
        OSError: torch has others.
    """
    # Not where it would be loaded: threads of another copy would be in the way of torch's.
    library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOW | getattr(os, "RTLD_NOLOAD", 0))
    library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    return library


def has_gnu_threads() -> bool:
    """Whether torch's threads are GNU's."""
    try:
        gnu_threads()
    except OSError:
        return False
    return True
