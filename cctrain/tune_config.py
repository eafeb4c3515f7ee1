"""The settings of the verb tune, a section of `config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cctrain.errors import RequestError
from cctrain.nearest import did_you_mean

TUNABLE = ("micro_batch", "activation_checkpointing", "layout", "step")
"""What the verb tune may change without being told to."""


@dataclass
class TuneConfig:
    """The search of the verb tune, which alone reads it."""

    max_trials: int = 8
    """The most trials, those that fail or run out of memory included. The same command with more goes on."""
    over: list[str] = field(default_factory=lambda: list(TUNABLE))
    """What may be changed: micro_batch (and with it accumulation), activation_checkpointing, layout (tensor parallelism
    against replicas), step. The length of samples, packing and the global batch are changed only as named below."""
    global_batch: list[int] = field(default_factory=list)
    """[LOW,HIGH]: rows a step that are allowed. Empty: the recipe's stays, as another one is another training."""
    seq_len: list[int] = field(default_factory=list)
    """Values of data.seq_len that are allowed, as [512,1024]. Empty: it stays."""
    packing: list[int] = field(default_factory=list)
    """Values of the recipe's packed_sequence_size that are allowed, 0 for rows that are not packed. A packed row counts
    as one row of the global batch. Empty: it stays."""
    memory_margin: float = 0.1
    """Fraction of a GPU's memory that is to stay free at the peak of what torch allocates."""
    min_keep: float | None = None
    """cc=emulated: the smallest keep ratio of a setting that is recommended."""
    trial_timeout_s: float = 1800.0
    """The longest a trial may take, loading included; then it is ended and counts as failed."""
    repeats: int = 0
    """Pairs of further runs after the search, of the recipe as it stands and of what was found, by turns: the gain is
    then theirs alone, as the best of several trials was picked for being fast, and from 2 on has an interval."""
    retry_failed: bool = False
    """Try those again that failed before, but for those that ran out of memory."""
    ledger: str | None = None
    """What has become of every trial; null: tune.jsonl under run_root."""

    def __post_init__(self) -> None:
        self._check_names()
        low, high = self.global_batch if len(self.global_batch) == 2 else (0, 0)
        for key, is_right, allowed in (
            ("max_trials", self.max_trials >= 1, "a whole number from 1"),
            ("repeats", self.repeats >= 0, "a whole number from 0"),
            ("global_batch", not self.global_batch or 1 <= low <= high, "[LOW,HIGH], as [8,64]"),
            ("seq_len", all(length >= 8 for length in self.seq_len), "a list of lengths of 8 or more tokens"),
            ("packing", all(size >= 0 for size in self.packing), "a list of tokens of a row, 0 for no packing"),
            ("memory_margin", 0 <= self.memory_margin < 1, "a fraction from 0, below 1"),
            ("min_keep", self.min_keep is None or 0 < self.min_keep <= 1, "a ratio above 0 and up to 1, as 0.9"),
            ("trial_timeout_s", self.trial_timeout_s > 0, "more than 0 seconds"),
        ):
            if not is_right:
                raise RequestError(f"tune.{key}={_listed(getattr(self, key))}: allowed is {allowed}")

    def _check_names(self) -> None:
        for name in self.over:
            if name not in TUNABLE:
                meant = did_you_mean(name, TUNABLE)
                raise RequestError(f"tune.over={_listed(self.over)}: allowed are {', '.join(TUNABLE)}.{meant}")


def _listed(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
