"""What a rank runs: `torchrun ... -m cctrain.worker RUN_DIR`.

A rank reads the resolved config.json, trains, and appends what it sees to samples/rankN.jsonl: a `start` line, a
`ready` line once the model stands, one line a step, and an `end` or `error` line. It knows nothing of Hydra, W&B or
the other ranks' samples.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import logging
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from cctrain.announcement import SEEN_VARIABLE
from cctrain.emulation import in_rank
from cctrain.errors import one_line
from cctrain.processes import die_with_parent, leave_if_failed, this_process
from cctrain.redaction import redacted
from cctrain.request.recipe import is_cpu_recipe
from cctrain.samples import SampleFile


def main(run_dir: Path) -> int:
    """Train as `run_dir`/config.json says. Returns the exit code, 0 or 1."""
    rank = int(os.environ["RANK"])
    _own_log(run_dir / "logs" / f"rank{rank}.log")
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the parent asks a rank that hangs where it is
    if rank:
        logging.getLogger().setLevel(logging.WARNING)
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    samples = begin(run_dir)
    try:
        if in_rank.is_wanted(config) and not is_cpu_recipe(config["train"]):
            in_rank.inject()
        engine: Any = importlib.import_module(f"cctrain.engines.{config['engine']['name']}")
        samples.write({"event": "end", **engine.train(config, samples)})
    except BaseException as error:  # noqa: BLE001 - whatever ends a rank belongs into the record
        with contextlib.suppress(OSError):  # a full disk takes no error line
            samples.write(last_words(error))
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return 1
    return 0


def begin(run_dir: Path) -> SampleFile:
    """This rank's samples, which say now that it has started, and on what machine."""
    rank = int(os.environ["RANK"])
    samples = SampleFile(run_dir / "samples" / f"rank{rank}.jsonl")
    seen = json.loads(os.environ.get(SEEN_VARIABLE, "null"))
    world = {"rank": rank, "world_size": int(os.environ["WORLD_SIZE"])}
    samples.write({"event": "start", **world, **this_process(), **({"seen": seen} if seen else {})})
    return samples


def last_words(error: BaseException) -> dict[str, Any]:
    """The line of a rank that `error` ended."""
    return {"event": "error", "time": time.time(), **explained(error)}


_GPU_RAN_OUT = re.compile(
    r"CUDA out of memory|CUDA (driver )?error: out of memory|\[CUDA\]: out of memory|Cuda failure.*out of memory"
    r"|STATUS_ALLOC_FAILED"
)
"""Of torch's allocator through its compiler, of the driver, of Triton, NCCL and cuBLAS."""
_HOST_RAN_OUT = re.compile(r"can't allocate memory|bad_alloc")
"""Of torch's allocator on a CPU, of C++. Not the system's "Cannot allocate memory": what a process may lock is, too."""
_NOTHING_TRAINS = "optimizer received no trainable parameters"
"""AutoModel's words."""


def explained(error: BaseException) -> dict[str, Any]:
    """Its kind and its message, for the record."""
    name, text = type(error).__name__, str(error).strip()
    ran_out = {"GPU": ("OutOfMemoryError", _GPU_RAN_OUT), "host": ("MemoryError", _HOST_RAN_OUT)}
    where = next((of for of, (kind, words) in ran_out.items() if name == kind or words.search(text)), None)
    if where:
        hint = "lower train.step_scheduler.local_batch_size or data.seq_len, or set activation_checkpointing"
        return {"kind": "out_of_memory", "message": f"out of {where} memory: {hint} (train.distributed)"}
    message = f"{name}: {one_line(error) or 'no message'}"
    if _NOTHING_TRAINS in text:
        message += ": train.peft.target_modules may match no layer of the model (q_proj is a name), or all is frozen"
    return {"kind": name, "message": redacted(message)[:500]}


def _own_log(path: Path) -> None:
    """Everything that this process prints, libraries' C code included, goes into one file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


if __name__ == "__main__":
    die_with_parent()
    leave_if_failed(main(Path(sys.argv[1])))
