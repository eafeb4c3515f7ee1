"""What times training on a rank, whichever engine trains: the clock, the loader's waits, the tolls' switch, and the
thread that writes the samples. It knows of no engine; an engine calls it at the edges of what it does.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from cctrain import flops
from cctrain.emulation.switch import TollSwitch
from cctrain.engines.replicas import unwrapped
from cctrain.samples import STOP_FILE, SampleFile, SampleThread
from cctrain.timing import device
from cctrain.timing.timer import StepTimer


class LossNotFiniteError(RuntimeError):
    """The loss became a NaN or infinite; what follows is not worth timing."""


def check_loss(step: int, loss: float, label_tokens: int) -> None:
    """Raise LossNotFiniteError where it is not."""
    if not math.isfinite(loss):
        why = "is train.optimizer.lr too high?" if label_tokens else "its batch has no label token"
        raise LossNotFiniteError(f"the loss of step {step} is {loss}; {why}")


class Observer:
    """The clock, the loader, the tolls and the samples of one rank's training."""

    def __init__(
        self, samples: SampleFile, make_switch: Callable[[], TollSwitch | None], recipe: Mapping[str, Any]
    ) -> None:
        """FLOPs are counted as the AutoModel `recipe` trains."""
        self._samples = samples
        self._make_switch = make_switch
        self._recipe = recipe
        self._switch: TollSwitch | None = None
        self._peak_bytes = 0
        self._losses: dict[int, float] = {}
        self._without_loss: list[dict[str, Any]] = []
        self.count_flops: flops.Counter
        self.timer: StepTimer
        self.loader: TimedLoader
        self.thread: SampleThread

    def attach(
        self, model: Any, loader: Any, *, data_rank: int, data_ranks: int, stop: Callable[[], None], hook: bool = True
    ) -> TimedLoader:
        """Start observing: returns `loader` timed, for the engine to train from.

        `stop`, called beside the training thread, ends the training of all ranks with one and the same step. `hook`
        marks the end of each forward pass of `model`; without it the engine does.
        """
        clock = device.clock()
        self.timer = StepTimer(clock)
        self.loader = TimedLoader(loader)
        if hook:
            model.register_forward_hook(lambda *_: self.timer.phase_end("forward"))
        self.count_flops = flops.counter_of(_model_config(model), self._recipe)
        self._samples.write(
            {
                "event": "ready",
                "data_rank": data_rank,
                "data_ranks": data_ranks,
                "clock": clock.name,
                "versions": _versions(),
            }
        )
        stop_file = self._samples.path.parent.parent / STOP_FILE  # the parent has measured enough
        self.thread = SampleThread(self.finished, self._samples, lambda: stop() if stop_file.exists() else None)
        return self.loader

    def begin(self) -> None:
        """Training begins: what came before belongs to no step, and its memory to no peak."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._switch = self._make_switch()
        self._next_block()
        self.timer.resume()
        self.loader.take_wait_s()

    def end(self, *, is_complete: bool) -> None:
        """Training is over: write the steps that are not written yet. After a failure the device may never finish
        what was queued (a collective whose peer is gone), so only a complete run waits for it."""
        if is_complete:
            device.drain()
        self.thread.close()
        if is_complete:
            self.thread.check()

    def memory(self) -> dict[str, int | None]:
        """Peaks of torch's allocator on this rank, None on CPU, and how often it had to free its cache to go on."""
        if not torch.cuda.is_available():
            return {"peak_allocated_bytes": None, "peak_reserved_bytes": None, "num_alloc_retries": None}
        stats = torch.cuda.memory_stats()
        return {
            # An engine may reset the counter, and then says what it was.
            "peak_allocated_bytes": max(self._peak_bytes, stats["allocated_bytes.all.peak"]),
            # Reset with the other, but what is reserved stays so, unless the cache had to be freed.
            "peak_reserved_bytes": stats["reserved_bytes.all.peak"],
            "num_alloc_retries": stats["num_alloc_retries"],
        }

    def step_end(
        self, *, step: int, loss: float | None, counts: dict[str, Any], peak_bytes: int = 0, **facts: Any
    ) -> None:
        """Step number `step`, from 1, is over; `counts` are of `count_tokens`, `facts` go beside them into the samples.

        `peak_bytes` is for an engine that resets torch's peak. A loss that is known later is None here, and comes by
        `loss_known`. Raises LossNotFiniteError, and what the samples' thread ran into.
        """
        self._peak_bytes = max(self._peak_bytes, peak_bytes)
        crossed = self._switch.step_end() if self._switch else {}
        wait_s = self.loader.take_wait_s()
        self.timer.step_end("optimizer", data_wait_s=wait_s, step=step, loss=loss, **facts, **counts, **crossed)
        if self._next_block():
            self.resume()
            self.loader.take_wait_s()
        self.thread.check()
        if loss is not None:
            check_loss(step, loss, counts["label_tokens"])

    def pause(self) -> None:
        """What follows belongs to no step, until `resume`: neither its time nor what it crosses."""
        self.timer.pause()

    def resume(self) -> None:
        """The next step begins here."""
        if self._switch:
            self._switch.forget()
        self.timer.resume()

    def loss_known(self, step: int, loss: float) -> None:
        """The loss of a step that ended without; called on any thread."""
        self._losses[step] = loss

    def finished(self) -> list[dict[str, Any]]:
        """The timer's rows since the last call, in order, each with its loss and its FLOPs, which are counted here,
        beside the training thread: a parent would have to for a thousand ranks."""
        rows = self._without_loss + self.timer.finished()
        ready: list[dict[str, Any]] = []
        for row in rows:
            if row["loss"] is None:
                if row["step"] not in self._losses:
                    break
                row["loss"] = self._losses.pop(row["step"])
            ready.append(row)
        self._without_loss = rows[len(ready) :]
        return [row | self._flops(row.pop("rows"), row.pop("patches")) for row in ready]

    def _flops(self, rows: list[Any], patches: list[Any]) -> dict[str, float]:
        try:
            return self.count_flops(rows, patches)
        except Exception:  # utilization is then unknown, which is no reason to end a training
            logging.getLogger(__name__).exception("the FLOPs of a step could not be counted: MFU and HFU are unknown")
            self.count_flops = lambda *_: {}
            return {}

    def _next_block(self) -> bool:
        """Whether a block of steps under other tolls begins here, with an empty queue."""
        return self._switch is not None and self._switch.next(device.drain)


class TimedLoader:
    """A data loader, with the host time that each `next` took."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._waited_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        begin = time.perf_counter()
        batches = iter(self._loader)  # starts the loader's workers, at each epoch
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited_s += time.perf_counter() - begin
            yield batch
            begin = time.perf_counter()

    def take_wait_s(self) -> float:
        """Seconds waited since the last call."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited


def _versions() -> dict[str, str | None]:
    """What this process has loaded."""
    nccl = ".".join(str(part) for part in torch.cuda.nccl.version()) if torch.cuda.is_available() else None
    return {"torch": torch.__version__, "cuda_runtime": torch.version.cuda, "nccl": nccl}


def _model_config(model: Any) -> dict[str, Any] | None:
    """The model's own configuration, with whatever the engine changed in it."""
    config: Any = getattr(unwrapped(model), "config", None)
    if not hasattr(config, "to_dict"):
        return None
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return plain
