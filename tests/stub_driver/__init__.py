"""The CUDA driver and CUPTI for machines without a GPU: driver.c, built against CUPTI's real headers."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cctrain.emulation.build import SOURCE, Cupti, find_cupti
from cctrain.emulation.injector import attached, counted
from cctrain.emulation.profile import TOLLS, Profile, Toll

PINNED, DEVICE, PAGEABLE = 0x50000000, 0x60000000, 0x70000000
"""Addresses that the stub takes for such memory."""
GLOBAL, THREAD_LOCAL, RELAXED = range(3)
"""Modes of capture."""
NCCL = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(args)"
"""The name of a kernel of a collective."""
EVERY = {"launch_us": 3.0, "graph_launch_us": 5.0, "wait_us": 7.0, "alloc_host_us": 11.0, "alloc_device_us": 13.0}
"""Tolls of calls, each another."""
TABLE = ((0, 2.0), (4096, 4.0))
"""A copy's toll in us, from so many bytes on."""
_LONGEST_S = 60


def build_driver(directory: Path) -> Cupti:
    """The stub as libcuda.so.1 in `directory`, which is CUPTI's library as well."""
    headers = find_cupti().headers
    ids = next(path for folder in headers if (path := folder / "cupti_driver_cbid.h").is_file()).read_text()
    names = re.findall(r"CUPTI_DRIVER_TRACE_CBID_(cu\w+) += (\d+),", ids)
    assert len(names) > 500
    (directory / "callbacks.inc").write_text("".join(f'[{number}] = "{name}",\n' for name, number in names))
    library = directory / "libcuda.so.1"
    include = [f"-I{folder}" for folder in (*headers, directory, SOURCE.parent)]
    flags = ["-O1", "-std=gnu11", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-Wno-overflow"]
    source = Path(__file__).with_name("driver.c")
    subprocess.run(["gcc", *flags, *include, source, "-o", library, "-ldl", "-lpthread"], check=True)
    return Cupti(headers, library)


class Work(NamedTuple):
    """One thing that the driver did."""

    call: str
    symbol: str
    stream: int
    what: str
    """done, captured or replayed."""
    injected_ns: int
    """By all classes, before it was done."""
    duration_ns: int
    """What a delay kernel read, -1 for others."""
    after: str
    """In a capture, the symbols of what it waits for."""


class Gpu:
    """The stub driver in this process, which is to have no other, with what was injected into it."""

    def __init__(self, stub: Path) -> None:
        self.driver = ctypes.CDLL(str(stub), mode=ctypes.RTLD_GLOBAL)
        self.driver.stub_log.restype = self.driver.stub_name.restype = ctypes.c_char_p
        self.driver.stub_new_graph.restype = ctypes.c_void_p
        word = ctypes.c_uint64
        text, address = ctypes.c_char_p, ctypes.c_void_p
        self.driver.stub_call.argtypes = [text, word, word, word, ctypes.c_size_t, text, address, ctypes.c_int]
        injector = attached()
        assert injector is not None
        self.injector = injector
        self._watch = ctypes.CFUNCTYPE(word)(self._injected_ns)

    def init(self) -> Gpu:
        """The program's first CUDA call, which loads the injection library; from then on the log says what was paid
        before each piece of work."""
        self.driver.cuInit(0)
        self.driver.stub_watch(self._watch)
        return self

    def _injected_ns(self) -> int:
        return round(sum(self.counts()["injected_s"].values()) * 1e9)

    def counts(self) -> dict[str, Any]:
        return counted(self.injector.read())

    def tolls(self, **values: Any) -> None:
        """From now on pay these, and nothing else."""
        self.injector.set_tolls(profile(**values))

    def call(
        self,
        name: str,
        *,
        stream: int = 7,
        to: int = 0,
        source: int = 0,
        num_bytes: int = 0,
        symbol: str | None = "a_kernel",
        graph: int | None = None,
        mode: int = THREAD_LOCAL,
    ) -> int:
        """Call the driver; returns its result."""
        kernel = symbol.encode() if symbol else None
        return int(self.driver.stub_call(name.encode(), stream, to, source, num_bytes, kernel, graph, mode))

    def copy(self, name: str, to: int, source: int, num_bytes: int = 4096, **rest: Any) -> int:
        return self.call(name, to=to, source=source, num_bytes=num_bytes, **rest)

    def crossed(self, work: Callable[[], object]) -> dict[str, Any]:
        """What `work` crossed and paid."""
        before = self.injector.read()
        work()
        return counted(tuple(now - then for now, then in zip(self.injector.read(), before, strict=True)))

    def log(self) -> list[Work]:
        lines = [line.split("\t") for line in self.driver.stub_log().decode().splitlines()]
        return [
            Work(call, symbol, int(stream), what, int(paid), int(waits), after)
            for call, symbol, stream, what, paid, waits, after in lines
        ]

    def done_by(self, work: Callable[[], object]) -> list[Work]:
        """What the driver did during `work`."""
        before = len(self.log())
        work()
        return self.log()[before:]


def profile(**values: Any) -> Profile:
    """A profile with these tolls alone."""
    assert set(values) <= set(TOLLS)
    return Profile("test", {name: Toll(values.get(name), None, "test") for name in TOLLS})


def ns(crossed: Mapping[str, Any]) -> dict[str, int]:
    """Nanoseconds injected by each class that did."""
    return {name: round(seconds * 1e9) for name, seconds in crossed["injected_s"].items() if seconds}


def numbers(crossed: Mapping[str, Any]) -> dict[str, Any]:
    """The counts that are not zero."""
    plain = {name: value for name, value in crossed.items() if isinstance(value, int) and value}
    return plain | {f"copies {kind}": tuple(each.values()) for kind, each in crossed["copies"].items() if each["count"]}


def in_own_process(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a process forked for it: a driver is loaded once, and for good."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        sys.stdout.flush()
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            code, said = 1, ""
            try:
                signal.alarm(_LONGEST_S)  # a thread that spins for ever heeds nothing else
                os.close(reader)
                test(*args, **kwargs)
                code = 0
            except BaseException:  # noqa: BLE001 - whatever it is, the parent tells it
                said = traceback.format_exc()
            os.write(writer, said[-60000:].encode())
            os._exit(code)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            pytest.fail(said or f"the process ended with {status}", pytrace=False)

    return run
