"""What NVML says of the GPUs once a second beside a run: energy, clocks, temperature, power, why clocks are held back.

A thread of the parent reads, so that ranks and their steps know nothing of it; what goes wrong costs readings, never
the run. `cctrain/readings.py` reduces them.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml

from cctrain.platform.nvml import session, visible_handles

Read = Callable[[], list[dict[str, float | None]]]
"""One reading: for each GPU `energy_j` (a counter), `sm_clock_mhz`, `memory_clock_mhz`, `temperature_c`, `power_w` and
`clocks_event_reasons` (NVML's bits); None where the driver does not say."""

TELEMETRY_FILE = "telemetry.jsonl"
_INTERVAL_S = 1.0
_LAST_READING_S = 5.0
"""How long the end of a run waits for a driver that does not answer."""
_QUANTITIES: dict[str, tuple[Callable[[Any], float], ...]] = {  # the first function that answers
    "energy_j": (lambda gpu: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000,),
    "sm_clock_mhz": (lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),),
    "memory_clock_mhz": (lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM),),
    "temperature_c": (
        lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
        lambda gpu: pynvml.nvmlDeviceGetTemperatureV(gpu, pynvml.NVML_TEMPERATURE_GPU),  # where the first is gone
    ),
    "power_w": (lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,),
    "clocks_event_reasons": (
        lambda gpu: int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)),
        lambda gpu: int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)),  # its name in older drivers
    ),
}


class Telemetry:
    """From entry to exit, appends a reading to `telemetry.jsonl` in `run_dir` every `interval_s`: the first at once,
    the last at the end. A line holds `time` (Unix seconds) and `gpus`, a list of what `Read` says.

    Of the visible GPUs the first `num_gpus` are read, one for each rank of this machine; with none there is neither
    thread nor file. `read` and `clock` replace NVML and the host's clock in tests.
    """

    def __init__(
        self,
        run_dir: Path,
        num_gpus: int,
        read: Read | None = None,
        *,
        clock: Callable[[], float] = time.time,
        interval_s: float = _INTERVAL_S,
    ) -> None:
        self._path = run_dir / TELEMETRY_FILE
        self._gpus = contextlib.nullcontext(read) if read else nvml_reader(num_gpus)
        self._clock, self._interval_s = clock, interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cctrain-telemetry", daemon=True) if num_gpus else None

    def __enter__(self) -> Telemetry:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._thread:
            self._thread.join(_LAST_READING_S)

    def _run(self) -> None:
        # Whatever it is, the run goes on with the readings so far.
        with contextlib.suppress(Exception), self._gpus as read:
            is_last = False
            while True:
                line = json.dumps({"time": self._clock(), "gpus": read()}) + "\n"
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line)
                if is_last:
                    break
                is_last = self._stopping.wait(self._interval_s)


@contextlib.contextmanager
def nvml_reader(num_gpus: int) -> Iterator[Read]:
    """Yields what reads the first `num_gpus` visible GPUs. Raises NVMLError where NVML or one of them is missing."""
    with session():
        gpus = visible_handles()[:num_gpus]
        yield lambda: [{name: _answer(functions, gpu) for name, functions in _QUANTITIES.items()} for gpu in gpus]


def _answer(functions: tuple[Callable[[Any], float], ...], gpu: Any) -> float | None:
    for function in functions:
        with contextlib.suppress(pynvml.NVMLError, AttributeError):  # the driver lacks it, or the binding does
            return function(gpu)
    return None
