"""The CUDA driver's own calls, through ctypes: kernels with a given number of arguments or duration, and allocation.

PyTorch keeps caches between a program and the driver's allocation, and neither PyTorch nor Triton launches in a few
microseconds. A call from here costs about one microsecond of Python, which no difference of two machines shows.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

ARGUMENT_COUNTS = (1, 16, 64, 256)
_HEAD = ".version 7.0\n.target sm_75\n.address_size 64\n"
_SPIN = """
.visible .entry spin(.param .u64 nanoseconds) {
    .reg .pred %early;
    .reg .u64 %now, %end;
    ld.param.u64 %end, [nanoseconds];
    mov.u64 %now, %globaltimer;
    add.u64 %end, %end, %now;
AGAIN:
    mov.u64 %now, %globaltimer;
    setp.lt.u64 %early, %now, %end;
    @%early bra AGAIN;
    ret;
}
"""


def ptx() -> str:
    """The kernels: `empty1` to `empty256`, named by their number of 8-byte arguments, and `spin`."""
    empty = (
        f".visible .entry empty{count}({', '.join(f'.param .u64 a{index}' for index in range(count))}) {{ ret; }}"
        for count in ARGUMENT_COUNTS
    )
    return "\n".join((_HEAD, *empty, _SPIN))


def kernel(name: str, arguments: Sequence[int]) -> Callable[[], None]:
    """What launches one thread of a kernel on the default stream; it raises where the driver refuses."""
    function = ctypes.c_void_p()
    _library().cuModuleGetFunction(ctypes.byref(function), _module(), name.encode())
    # Pointer objects, because they keep alive what they point to.
    pointers = [ctypes.pointer(ctypes.c_uint64(argument)) for argument in arguments]
    parameters = (ctypes.POINTER(ctypes.c_uint64) * len(pointers))(*pointers)
    one, none = ctypes.c_uint(1), ctypes.c_uint(0)
    shape = (one, one, one, one, one, one, none)
    return functools.partial(_library().cuLaunchKernel, function, *shape, None, parameters, None)


def spin(microseconds: int) -> Callable[[], None]:
    """What launches a kernel that lasts so long."""
    return kernel("spin", [microseconds * 1000])


def allocate(where: str, num_bytes: int) -> Callable[[], None]:
    """Allocate on the `device`, or pinned memory on the `host`. Returns what frees it."""
    names = {"device": ("cuMemAlloc_v2", "cuMemFree_v2"), "host": ("cuMemAllocHost_v2", "cuMemFreeHost")}
    take, give_back = (getattr(_library(), name) for name in names[where])
    address = ctypes.c_uint64()
    take(ctypes.byref(address), ctypes.c_size_t(num_bytes))
    return functools.partial(give_back, address)


@functools.cache
def _module() -> ctypes.c_void_p:
    torch.cuda.synchronize()  # from here on, PyTorch's context is the current one
    module = ctypes.c_void_p()
    _library().cuModuleLoadData(ctypes.byref(module), ptx().encode())
    return module


@functools.cache
def _library() -> Any:
    torch.cuda.synchronize()
    library = ctypes.CDLL("libcuda.so.1")
    names = ("cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel")
    for name in (*names, "cuMemAlloc_v2", "cuMemFree_v2", "cuMemAllocHost_v2", "cuMemFreeHost"):
        getattr(library, name).restype = _check
    return library


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"the CUDA driver answered with error {code}")
