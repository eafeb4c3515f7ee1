"""Whether the GPUs offer NVLink multicast, which CC takes away: asked of the CUDA driver, never used.

Asking takes no context and makes no multicast object. A process of its own asks, because the driver takes a while to
start and may hang; `begin` starts it, and what it returns waits for the answer.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable

_MULTICAST_SUPPORTED = 132  # CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED
_TIMEOUT_S = 2.0

Answer = list[bool] | None
"""Of each visible GPU; None where there is no driver, or it does not answer."""


def begin(num_gpus: int, timeout_s: float = _TIMEOUT_S) -> Callable[[], Answer]:
    """Start asking. Returns what waits for the answer, until so long after the start."""
    if not num_gpus:
        return lambda: None
    deadline = time.monotonic() + timeout_s
    asking = subprocess.Popen([sys.executable, "-m", __name__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def wait() -> Answer:
        with asking:
            try:
                answer: Answer = json.loads(asking.communicate(timeout=max(0.0, deadline - time.monotonic()))[0])
            except (subprocess.TimeoutExpired, ValueError):
                asking.kill()
                return None
        return answer

    return wait


def _ask() -> Answer:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        number, device, value = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        _check(cuda.cuInit(0))
        _check(cuda.cuDeviceGetCount(ctypes.byref(number)))
        answer = []
        for index in range(number.value):
            _check(cuda.cuDeviceGet(ctypes.byref(device), index))
            _check(cuda.cuDeviceGetAttribute(ctypes.byref(value), _MULTICAST_SUPPORTED, device))
            answer.append(bool(value.value))
    except (OSError, AttributeError):
        return None
    return answer


def _check(code: int) -> None:
    if code:
        raise OSError(f"the CUDA driver answered with error {code}")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_ask()))
