"""The injection library from Python: how a process is started with it, its tolls switched, its counters read."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from cctrain.emulation.arms import CUPTI
from cctrain.emulation.build import injection_library
from cctrain.emulation.profile import CLASSES, SCALARS, Profile
from cctrain.errors import PlatformError

INJECTION = "CUDA_INJECTION64_PATH"
"""The driver's variable: a library that it loads before a process's first CUDA call."""
TOLLS = "CCTRAIN_TOLLS"
CROSSINGS = "CCTRAIN_CROSSINGS"

Crossings = dict[str, Any]
"""Counts as run.json has them: `launches`, `copies` by kind with `count` and `bytes`, `in_driver_s`..."""

_COPIES = ("h2d_pinned", "h2d_pageable", "d2h_pinned", "d2h_pageable", "d2d")
_WORDS = (
    *("launches", "graph_launches", "graph_nodes", "waits"),
    *(f"copies_{kind}" for kind in _COPIES),
    *(f"bytes_{kind}" for kind in _COPIES),
    *("other_copies", "allocs_host", "allocs_device", "collectives", "in_driver_ns", "blocked_ns"),
    *(f"injected_{name}_ns" for name in CLASSES),
)
"""inject.c's Counters, each a word of 64 bits."""


def process_environment(
    profile: Profile | None, crossings: Path | None = None, library: Path | None = None
) -> dict[str, str]:
    """What a process needs in its environment to be injected into from its first CUDA call on, with `profile`'s tolls,
    or none; it leaves its counters in the directory `crossings`. `library` stands for the one that is built here.

    Raises PlatformError where the library cannot be built, or another one is to be injected.
    """
    library = library or injection_library()
    other = os.environ.get(INJECTION)
    if other and other != str(library):
        raise PlatformError(
            f"{INJECTION} is set to {other}: a profiler has the place that emulation needs; run without it"
        )
    return {INJECTION: str(library), TOLLS: tolls_text(profile), CROSSINGS: str(crossings or "")}


def check_not_inside(environment: Mapping[str, str], way_out: str) -> None:
    """Raises PlatformError under `emulate`: what is measured there pays tolls, and must not go for anything else."""
    if TOLLS in environment:
        raise PlatformError(f"this runs under `emulate`, which injects tolls already: run it by itself, {way_out}")


def tolls_text(profile: Profile | None) -> str:
    """`profile` as inject.c's cctrain_set_tolls takes it; None is no toll at all."""
    if profile is None:
        return "0 0 0 0 0 0 1" + " 0 0" * 4
    words = [profile.number(name) for name in (*SCALARS, "host_ratio")]
    for kind in _COPIES[:4]:
        points = profile.points(f"copy_{kind}_us")
        does_block = kind != "h2d_pageable" and profile.blocks(f"{kind}_blocks")
        words += [int(does_block), len(points), *(number for point in points for number in point)]
    return " ".join(str(word) for word in words)


class Injector:
    """The library as this process's driver has loaded it."""

    counted_by = CUPTI
    paid: ClassVar[str] = ""
    """What this process pays, as `tolls_text` has it; empty until `attached`."""

    def __init__(self, library: Path) -> None:
        """Raises PlatformError where it cannot be loaded."""
        try:
            self._library = ctypes.CDLL(str(library))
        except OSError as error:
            raise PlatformError(f"the injection library cannot be loaded: {error}") from error
        self._library.cctrain_status.restype = ctypes.c_char_p
        self._library.cctrain_read_counters.restype = ctypes.c_size_t
        self._words = (ctypes.c_uint64 * len(_WORDS))()
        size = self._library.cctrain_read_counters(None, ctypes.c_size_t(0))
        assert size == ctypes.sizeof(self._words), "inject.c's Counters and _WORDS differ"

    def check(self) -> None:
        """Raise PlatformError where the library is not at work; CUDA must be initialised."""
        status = self._library.cctrain_status().decode()
        if status:
            raise PlatformError(f"emulation is not at work: {status}")

    def set_tolls(self, profile: Profile | None) -> None:
        """From now on every thread pays `profile`'s tolls, or none. Wait for the device before, or what is queued pays
        the new tolls of its collectives. Raises PlatformError where some toll could not be paid so far."""
        self.pay(tolls_text(profile))

    def pay(self, text: str) -> None:
        """The same, of tolls as `tolls_text` has them."""
        if not self._library.cctrain_set_tolls(text.encode()):
            raise PlatformError("emulation is not at work: the library does not take the tolls")
        Injector.paid = text
        self.check()

    def read(self) -> tuple[int, ...]:
        """The counters since the process began, in the order of `crossings`; a microsecond."""
        self._library.cctrain_read_counters(self._words, ctypes.c_size_t(ctypes.sizeof(self._words)))
        return tuple(self._words)

    def counted(self, words: tuple[int, ...]) -> Crossings:
        """A difference of two reads, by name."""
        return counted(words)


def attached() -> Injector | None:
    """The injector of this process; None where it was started without."""
    path = os.environ.get(INJECTION)
    if not path or TOLLS not in os.environ:
        return None
    Injector.paid = Injector.paid or os.environ[TOLLS] or tolls_text(None)
    return Injector(Path(path))


@contextlib.contextmanager
def tolls(profile: Profile) -> Iterator[Injector]:
    """Pay `profile`'s tolls inside the block, in all threads of the process, and after it what was paid before.

    CUDA must be initialised, and the process have been started with `process_environment`, as `python -m cctrain
    emulate` does. Raises PlatformError where it was not.
    """
    injector = attached()
    if injector is None:
        raise PlatformError(
            "this process was started without the injection library: run it with "
            "`python -m cctrain emulate --tolls NAME -- python ...`"
        )
    injector.check()
    before = injector.paid
    try:
        injector.set_tolls(profile)
        yield injector
    finally:
        injector.pay(before)


def counted(words: tuple[int, ...]) -> Crossings:
    """`Injector.read`'s counters, or a difference of two, by name; times in seconds."""
    plain = dict(zip(_WORDS, words, strict=True))
    copies = {kind: {"count": plain[f"copies_{kind}"], "bytes": plain[f"bytes_{kind}"]} for kind in _COPIES}
    injected = {name: plain[f"injected_{name}_ns"] / 1e9 for name in CLASSES}
    counts = {name: plain[name] for name in ("launches", "graph_launches", "graph_nodes", "waits")}
    rest = {name: plain[name] for name in ("other_copies", "allocs_host", "allocs_device", "collectives")}
    times = {"in_driver_s": plain["in_driver_ns"] / 1e9, "blocked_s": plain["blocked_ns"] / 1e9}
    return {**counts, "copies": copies, **rest, **times, "injected_s": injected}


def has_paid(counts: Mapping[str, Any]) -> bool:
    """Whether a process was made to wait: a program can set tolls of its own."""
    return any(seconds > 0 for seconds in counts["injected_s"].values())


def left_behind(crossings: Path) -> Mapping[int, Crossings]:
    """The counters that injected processes left in a directory, by process id, of those that used CUDA."""
    found = {}
    for path in sorted(crossings.glob("*.counters")):
        words = _words_of(path)
        if words and path.stem.isdecimal():
            found[int(path.stem)] = counted(words)
    return found


def refusals(crossings: Path) -> Mapping[int, str]:
    """By process id, why a process that left word in the directory was not injected into, or not wholly."""
    paths = [path for path in sorted(crossings.glob("*.refused")) if path.stem.isdecimal()]
    return {int(path.stem): path.read_text(encoding="utf-8", errors="replace").strip() for path in paths}


def _words_of(path: Path) -> tuple[int, ...] | None:
    """None where it is no whole file of counters: a program may write there what it likes, or a disk be full."""
    size = ctypes.sizeof(ctypes.c_uint64) * len(_WORDS)
    try:
        content = path.read_bytes() if path.is_file() and path.stat().st_size == size else b""
    except OSError:
        return None
    return tuple((ctypes.c_uint64 * len(_WORDS)).from_buffer_copy(content)) if len(content) == size else None
