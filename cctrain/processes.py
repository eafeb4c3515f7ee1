"""Processes by identity: a pid with its start, so that a reused pid is another one; how they stop, none left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""A Ctrl-C, a scheduler's stop, a closed terminal."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def this_process() -> dict[str, Any]:
    """Identity of the calling process, for JSON."""
    return {"host": _host(), "pid": os.getpid(), "process_start": _start(os.getpid())}


def is_here(identity: Mapping[str, Any]) -> bool:
    """Whether the process runs, or ran, on this machine."""
    return bool(identity.get("host") == _host())


def host_name(identity: Mapping[str, Any]) -> str:
    """The name of the machine that the process runs, or ran, on, for people."""
    return str(identity.get("host")).partition("/")[0]


def _host() -> str:
    """The host's name with its namespace of pids: containers may share the one and not the other."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def is_alive(identity: Mapping[str, Any]) -> bool:
    """Whether the process of this machine still runs."""
    start = _start(int(identity["pid"]))
    return start is not None and start == identity.get("process_start")


def kill_session(identity: Mapping[str, Any]) -> None:
    """SIGKILL the process with all of its process group, if it leads one and still runs on this machine."""
    if not (is_here(identity) and is_alive(identity)):
        return
    pid = int(identity["pid"])
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel SIGKILL this process when the one that started it ends, however it ends. Survives exec.

    `parent` is the pid of that one where it is known: it may have ended before this is called.
    """
    parent = parent or os.getppid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal.SIGKILL)


def leave_if_failed(code: int) -> int:
    """End this process with `code` if that is not 0: a rank that failed must not wait for the others in an exit
    handler. Returns 0."""
    if code:
        with contextlib.suppress(OSError):  # of a full disk
            sys.stdout.flush()
        os._exit(code)
    return code


def take_stops_as_ctrl_c() -> None:
    """A scheduler's SIGTERM and a closed terminal then raise KeyboardInterrupt; a signal that is ignored stays so."""
    for stop in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop) is not signal.SIG_IGN:
            signal.signal(stop, signal.default_int_handler)


@contextlib.contextmanager
def stops_held() -> Iterator[Callable[[], None]]:
    """Within, a stop waits: an import that it cut short could not be had again, and a file would be half there.

    Yields what lets go of it before the end. That, or the end, raises KeyboardInterrupt if one has come, unless
    something else has been told to take stops since.
    """
    came: list[int] = []

    def take(number: int, _: object) -> None:
        came.append(number)

    before = {stop: handler for stop in STOPS if (handler := signal.getsignal(stop)) is not signal.SIG_IGN}
    for stop in before:
        signal.signal(stop, take)

    def let_go() -> None:
        held = [stop for stop in before if signal.getsignal(stop) is take]
        for stop in held:
            signal.signal(stop, before[stop])
        if held and came:
            raise KeyboardInterrupt

    try:
        yield let_go
    except BaseException:
        came.clear()  # it ends already
        raise
    finally:
        let_go()


def ignore_stops() -> None:
    """For a process that is ending: another Ctrl-C must not leave a child or half a record behind."""
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)


def _start(pid: int) -> str | None:
    """Boot id and clock ticks from boot to the start of `pid`; None where it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else f"{boot}:{fields[19]}"
