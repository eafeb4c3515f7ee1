"""The lines of `peers.py`, what they are given to train, and which of them can be run at which shape."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, dataclass

from cctrain.errors import RequestError

OURS = "ours"
LINES: dict[str, tuple[str, ...]] = {
    OURS: ("step=graphed",),
    "AutoModel": (),
    "AutoModel, layers compiled": ("+train.distributed.enable_compile=true",),
    "Trainer + PEFT": ("engine=hf",),
    "torchtune": ("torchtune",),
    "torchtune, compiled": ("torchtune", "--compile"),
    "torchtitan": ("torchtitan",),
    "Trainer + PEFT + Liger": ("engine=hf", "+train.model.use_liger_kernel=true"),
    "Trainer + PEFT + torch.compile": ("engine=hf", "+train.compile.enabled=true"),
    "torchtitan, compiled": ("torchtitan", "--compile"),
    "Axolotl": ("axolotl",),
    "Unsloth": ("unsloth",),
}
"""Overrides; of those in OTHERS the arguments of `others/run.py`. What matters most comes first."""
OTHERS = ("torchtune", "torchtune, compiled", "torchtitan", "torchtitan, compiled", "Axolotl", "Unsloth")
PACKED = ("torchtune", "axolotl", "unsloth")
"""Libraries that `others/run.py` gives packed rows."""
FURTHER = {("llama8b_peft", "AutoModel, layers compiled"): ("train.peft.use_triton=false",)}
"""Overrides of a recipe's line. AutoModel's layers are compiled one by one, as each adapter is a class of its own; with
its Triton kernels for adapters that takes 9 s a layer."""
TASKS = {"lora": "llama8b_peft", "sft": "llama8b_sft"}
SHAPES = ("4x256", "1x4096", "packed4096")


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: a line, of a task, at a shape, for the `repeat`-th time (from 0)."""

    task: str
    shape: str
    line: str
    repeat: int

    @property
    def kind(self) -> tuple[str, str, str]:
        """What its repeats have in common."""
        return (self.task, self.shape, self.line)

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(re.sub(r"\W+", "_", str(part)) for part in asdict(self).values())


def shape_overrides(shape: str) -> tuple[str, ...]:
    """Of `4x256` (4 samples of 256 tokens) and `packed4096` (samples of SQuAD's lengths, packed into 4096).
    Raises RequestError."""
    data: tuple[str, ...]
    batch, packed = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", shape), re.fullmatch(r"packed([1-9]\d*)", shape)
    if batch:
        micro, data = batch[1], (f"data.seq_len={batch[2]}",)
    elif packed:
        strategy = "++train.packed_sequence.packing_strategy=neat"
        micro = "1"
        data = ("data.lengths=squad", f"++train.packed_sequence.packed_sequence_size={packed[1]}", strategy)
    else:
        raise RequestError(f"shape {shape}: allowed is SAMPLESxTOKENS, as 4x256, or packedTOKENS, as packed4096")
    sizes = [f"train.step_scheduler.{which}_batch_size={micro}" for which in ("local", "global")]
    return ("data=synthetic", *data, *sizes, "++train.model.attn_implementation=sdpa")


def why_not(line: str, shape: str, flags: argparse.Namespace) -> str | None:
    """Why a line is not run at a shape; None where it is."""
    if line not in OTHERS:
        return None
    library = flags.lines[line][0]
    if flags.others is None:
        return "no --others FILE: others/install.py makes one"
    if library not in flags.others:
        return f"{library} is not in the --others FILE: others/install.py DIR {library}"
    tried = flags.others[library]
    if "python" not in tried:
        failed = f"its {tried.get('failed_at')} failed: {tried.get('error')}"
        return failed if "failed_at" in tried else "the --others FILE names no python for it: it is not install.py's"
    is_given = library in PACKED or not shape.startswith("packed")
    return None if is_given else "others/run.py gives it rows of one document, not packed ones"
