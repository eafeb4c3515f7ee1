"""A setting that can be tried, what it asks of GPU and host, and what was seen of it: plain data, for JSON too."""

from __future__ import annotations

from dataclasses import dataclass

COMPLETE, OUT_OF_MEMORY, FAILED = "complete", "out of memory", "failed"
"""What becomes of a trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting."""

    global_batch: int
    """Rows a step, over all ranks: samples, or packed rows."""
    micro_batch: int
    """Rows of one pass of a data-parallel rank."""
    data_ranks: int
    """Ranks that see different rows."""
    tensor: int
    """Ranks that share a layer."""
    seq_len: int | None
    """data.seq_len; None as the recipe has it."""
    packing: int
    """Tokens of a packed row; 0 where rows are not packed."""
    is_checkpointing: bool
    step: str
    """stock, graphed..."""
    is_replicated: bool = False
    """Each rank holds the whole model (strategy=ddp). Grids that were recorded before it was tried do not say."""

    @property
    def accumulation(self) -> int:
        """Micro-batches a step."""
        return self.global_batch // (self.micro_batch * self.data_ranks)

    @property
    def label(self) -> str:
        """In a few words: micro-batches x rows x tokens of a row where that is known, global batch..."""
        length = f"x{self.packing} packed" if self.packing else f"x{self.seq_len}" if self.seq_len else ""
        parts = [f"{self.accumulation}x{self.micro_batch}{length}", f"global {self.global_batch}"]
        parts += [f"tp {self.tensor}"] if self.tensor > 1 else []
        parts += ["whole replicas"] if self.is_replicated else []
        parts += ["checkpointing"] if self.is_checkpointing else []
        return ", ".join([*parts, self.step])


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one micro-batch of a point asks of a rank, as far as it can be known before anything has run."""

    row_tokens: int
    """Tokens of a row, padding included, if it is as long as the settings say."""
    flops: float
    """On this rank, recomputation included; of an unknown model those of 1e9 weights, and the fit finds the rest."""
    crossings: float
    """Launches, waits and copies."""
    kernels: float
    """What the GPU runs: the crossings of a stock step, also where a graph launches them as one."""
    link_bytes: float
    """Through the links to other GPUs."""
    memory_gib: tuple[float, float] | None
    """The part that is there whatever the micro-batch, and the part that grows with it; None for an unknown model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a trial came to. All but `point` and `outcome` are None where it did not get that far."""

    point: Point
    outcome: str
    rate: float | None = None
    """Real tokens/s/GPU; of the tolled steps in an emulated run. What the search wants most of."""
    step_time_s: float | None = None
    """Mean, of the same steps."""
    plain_step_time_s: float | None = None
    """Of an emulated run's steps without tolls."""
    keep_ratio: float | None = None
    real_tokens: float | None = None
    """A step, over all ranks, mean."""
    padded_tokens: float | None = None
    crossings: float | None = None
    """A step, of one rank, where they were counted."""
    peak_gib: float | None = None
    """Allocated by torch, on the rank that allocates most."""
    is_steady: bool | None = None
    run: str | None = None
    """Name of the run directory."""
    why: str | None = None
    """Why it did not complete, in words."""

    @property
    def is_complete(self) -> bool:
        """Whether there is a rate."""
        return self.outcome == COMPLETE
