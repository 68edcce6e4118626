"""The threads that torch computes in, for others to compute in too."""

import ctypes
import os
import sys
from functools import cache

import torch  # noqa: F401 - it brings them


@cache
def gnu_threads() -> ctypes.CDLL:
    """GNU's OpenMP, which torch brings on Linux, with the threads that it computes in.

    Raises:
        OSError: it is not there.
    """
    if sys.platform != "linux":
        raise OSError("torch has other threads here")
    # Only as it is there already: threads of another copy would be in the way of torch's.
    library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    return library


def has_gnu_threads() -> bool:
    """Whether torch has brought GNU's threads."""
    try:
        gnu_threads()
    except OSError:
        return False
    return True
