"""Does a subscriber of CUPTI make the launch of a CUDA graph slower?

    python benchmarks/graph_launch.py

A library that does nothing but subscribe to CUPTI, with no callback enabled, is injected as the emulation's is. The
host's time to launch graphs of 100 kernels, captured before, under and after a subscription: microseconds, tenth
percentile of 40 blocks of 10. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cctrain.emulation.build import find_cupti
from cctrain.emulation.injector import INJECTION
from cctrain.tolls.device import can_run

_KERNELS, _CALLS, _BLOCKS = 100, 10, 40
_SOURCE = """
#include <cuda.h>
#define __DEVICE_TYPES_H__
#define __DRIVER_TYPES_H__
#define __SURFACE_TYPES_H__
#define __TEXTURE_TYPES_H__
#define __VECTOR_TYPES_H__
#include <cupti_callbacks.h>
#include <cupti_result.h>
static CUpti_SubscriberHandle subscriber;
static void CUPTIAPI on_call(void *data, CUpti_CallbackDomain domain, CUpti_CallbackId id, const void *call) {
  (void)data, (void)domain, (void)id, (void)call;
}
int subscribe(void) { return cuptiSubscribe(&subscriber, (CUpti_CallbackFunc)on_call, NULL); }
int unsubscribe(void) { return cuptiUnsubscribe(subscriber); }
int InitializeInjection(void) { return 1; }
"""


def build(folder: Path) -> Path:
    """The library, in `folder`."""
    cupti, source, library = find_cupti(), folder / "subscribe.c", folder / "subscribe.so"
    source.write_text(_SOURCE)
    flags = ["-O2", "-shared", "-fPIC", *(f"-I{headers}" for headers in cupti.headers)]
    link = [str(cupti.library), f"-Wl,-rpath,{cupti.library.parent}", "-o", str(library)]
    subprocess.run(["cc", *flags, str(source), *link], check=True)
    return library


def measure(library: Path) -> None:
    """In a process that the library was injected into: print."""
    import torch

    from cctrain.tolls.device import time_us, warm_up

    number, stream = torch.zeros(1, device="cuda"), torch.cuda.Stream()
    number.add_(1)
    warm_up()
    cupti = ctypes.CDLL(str(library))
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    found: dict[str, dict[str, float]] = {}

    def launch(state: str) -> None:
        """All graphs captured so far, and one that is captured now."""
        graph = graphs[state] = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            graph.capture_begin()
            for _ in range(_KERNELS):
                number.add_(1)
            graph.capture_end()
        for captured, each in graphs.items():
            block = time_us(each.replay, _CALLS, with_wait=False)
            block()
            found.setdefault(state, {})[captured] = sorted(block() for _ in range(_BLOCKS))[_BLOCKS // 10]

    launch("never subscribed")
    for state, change in (
        ("subscribed", cupti.subscribe),
        ("unsubscribed", cupti.unsubscribe),
        ("subscribed again", cupti.subscribe),
    ):
        if change():
            sys.exit(f"CUPTI refused: {state}")
        launch(state)
    for state, times in found.items():
        print(f"{state:18}" + "  ".join(f"captured {captured}: {us:.2f}" for captured, us in times.items()))
    print(json.dumps({**found, "gpu": torch.cuda.get_device_name()}))


def main() -> int:
    """Returns the exit code."""
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
        return 0
    if why := can_run():
        sys.exit(f"this benchmark {why}")
    with tempfile.TemporaryDirectory() as folder:
        library = str(build(Path(folder)))
        command = [sys.executable, __file__, library]
        return subprocess.run(command, env={**os.environ, INJECTION: library}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
