"""Limits of the numba path, and the thread pool that its loops run on."""

from __future__ import annotations

import ctypes
import functools

import torch

KERNEL_SIZES = (3, 5, 7, 9, 11, 13, 15, 17, 19)  # Each has an unrolled loop.
MAX_LEVELS = 8


@functools.cache
def openmp() -> ctypes.CDLL | None:
    """Return PyTorch's OpenMP library; None if PyTorch does not use GNU OpenMP.

    The loops run on PyTorch's own threads. A second pool would compete with them for the cores,
    because they keep spinning for milliseconds after each operation.
    """
    try:
        # Through PyTorch's library: other packages may load another OpenMP.
        library = ctypes.CDLL(torch._C.__file__)
        library.GOMP_parallel.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_uint] * 2
        library.GOMP_parallel.restype = None
    except (OSError, AttributeError):
        return None
    return library
