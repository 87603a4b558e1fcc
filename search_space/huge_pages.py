"""Huge pages for large tensors on Linux.

The first touch of fresh memory costs a fault for every page. A gradient of 100 000 class weights is fresh at every
step: 50 000 faults of 4 KiB, or 100 of 2 MiB where the kernel gives huge pages to who asks (`madvise`).
"""

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable

from torch import Tensor

SMALLEST_BYTES = 8 * 2**20
"""Below, little is to be gained; and allocators give only larger blocks a mapping of their own, and back at once."""


def fresh(tensor: Tensor) -> Tensor:
    """The tensor, whose memory nobody has touched yet, on huge pages where that is possible; its content is the same.

    Nothing happens to small tensors, on other devices, and on systems that do not know the call.
    """
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type == "cpu" and size >= SMALLEST_BYTES and tensor.is_contiguous():
        advise = _madvise()
        if advise is not None:
            start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            stop = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
            advise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_HUGEPAGE)
    return tensor


@functools.cache
def _madvise() -> Callable[..., object] | None:
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    found: Callable[..., object] | None = getattr(ctypes.CDLL(None), "madvise", None)
    return found
