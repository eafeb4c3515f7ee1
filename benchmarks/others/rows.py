"""The rows that a recipe's loader gives all lines of `peers.py`, as other libraries want them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

NO_LABEL = -100


class Rows(NamedTuple):
    """Of a step: token ids and labels, shifted by one already, of shape (micro-batch, tokens); and the lengths of the
    documents in each row, 0 behind the last."""

    ids: torch.Tensor
    labels: torch.Tensor
    seq_lens: torch.Tensor


def read_rows(path: Path, num_steps: int) -> list[Rows]:
    """Of each step."""
    found = torch.load(path, weights_only=True)
    keys = ("input_ids", "labels", "seq_lens")
    if missing := set(keys) - set(found):
        raise SystemExit(f"--rows {path} has no {', '.join(missing)}: an earlier peers_rows.py wrote it; delete it")
    steps = list(map(Rows, *(found[key].long() for key in keys)))
    if len(steps) < num_steps:
        raise SystemExit(f"--rows {path} has {len(steps)} steps, fewer than --warmup and --steps together: {num_steps}")
    return steps[:num_steps]


def unshifted(labels: torch.Tensor) -> torch.Tensor:
    """For a library that shifts labels itself."""
    return torch.cat([torch.full_like(labels[:, :1], NO_LABEL), labels[:, :-1]], dim=1)


def packs(rows: Rows) -> list[dict[str, torch.Tensor]]:
    """A micro-batch of packed rows as torchtune's collater takes them: padding is a document of its own."""
    found = []
    for ids, labels, seq_lens in zip(rows.ids, unshifted(rows.labels), rows.seq_lens, strict=True):
        lengths = [*seq_lens[seq_lens > 0].tolist(), len(ids) - int(seq_lens.sum())]
        lengths = [length for length in lengths if length]
        positions = torch.cat([torch.arange(length) for length in lengths])
        found.append({"tokens": ids, "labels": labels, "input_pos": positions, "seq_lens": torch.tensor(lengths)})
    return found
