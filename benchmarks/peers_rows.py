"""The rows that a recipe's own loader gives its engines, in one file, for libraries that train no such recipe.

    python benchmarks/peers_rows.py ROWS.pt --steps 111 recipe=llama8b_peft data=synthetic data.seq_len=256

The file is a dictionary of tensors of int32, which `torch.load` reads: `input_ids`, and `labels`, shifted by one
already, -100 where no loss is taken, of the shape (steps, micro-batch, tokens); and `seq_lens`, the lengths of each
row's documents, several where rows are packed, of the shape (steps, micro-batch, most of them), 0 behind the last.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from cctrain.engines.hf_model import build_loader
from cctrain.metrics import count_tokens
from cctrain.request.compose import compose_config
from cctrain.request.data_files import prepare_data
from cctrain.request.recipe import located

KEYS = ("input_ids", "labels")


def batches(train: dict[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    """A micro-batch at a time, epoch after epoch, as on the only rank of a run."""
    loader = build_loader(train, data_rank=0, data_ranks=1, first=nullcontext())
    for epoch in count():
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        yield from loader


def rows(overrides: list[str], num_steps: int) -> dict[str, torch.Tensor]:
    """Of the first `num_steps` steps of the run that these overrides ask for; a step is one micro-batch."""
    config = compose_config(overrides)
    with tempfile.TemporaryDirectory() as folder:
        prepare_data(config.data, Path(folder), is_vlm=False)
        taken = list(islice(batches(located(config.train, Path(folder))), num_steps))
    found = {key: torch.stack([batch[key] for batch in taken]).to(torch.int32) for key in KEYS}
    lengths = [torch.tensor(documents) for batch in taken for _, documents in count_tokens([batch])["rows"]]
    padded = torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True).to(torch.int32)
    return {**found, "seq_lens": padded.reshape(*found["labels"].shape[:2], -1)}


def main() -> None:
    """Make them, write them where nobody finds half of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("overrides", nargs="+")
    flags = parser.parse_args()
    part = flags.out.with_name(f"{flags.out.name}.{os.getpid()}.part")
    torch.save(rows(flags.overrides, flags.steps), part)
    part.replace(flags.out)


if __name__ == "__main__":
    main()
