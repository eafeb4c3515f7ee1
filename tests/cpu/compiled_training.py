"""Recipes trained twice in one process, uncompiled, and with their layers and loss compiled:
`torchrun compiled_training.py CASES`, a JSON object of overrides by the name of their case.

What `step=graphed` compiles on a GPU is compiled here for a CPU, up to the code generation, and what it records is
kept and run again: prints by case the losses of both and, of the second, what the record says of it.
"""

import functools
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from regression import FakeRecorder

from cctrain.engines import automodel
from cctrain.engines.automodel_graphed import GraphedTraining
from cctrain.request.compose import compose_config
from cctrain.request.recipe import located
from cctrain.samples import SampleFile

TENSOR = torch.tensor


def tensor_of_the_host(*args, **kwargs):
    """torch.tensor, but on a GPU it would copy, which cannot be captured."""
    assert "device" not in kwargs, "a number was copied to the device while it was captured"
    return TENSOR(*args, **kwargs)


class AsCaptured(FakeRecorder):
    """What runs again takes itself for captured, as far as transformers asks, copies no numbers from the host, and is
    compiled no more."""

    def record(self, work):
        imports = importlib.import_module("transformers.utils.import_utils")

        def captured():
            original, imports.is_cuda_stream_capturing = imports.is_cuda_stream_capturing, lambda: True
            torch.tensor = tensor_of_the_host
            try:
                with torch.compiler.set_stance("fail_on_recompile"):
                    work()
            finally:
                imports.is_cuda_stream_capturing = original
                torch.tensor = TENSOR

        return super().record(captured)


def train(recipe: dict, *, is_compiled: bool) -> tuple[list[float], dict[str, Any]]:
    """The losses of its steps, and what the record says of them."""
    path = Path(tempfile.mkdtemp()) / "samples" / "rank0.jsonl"
    path.parent.mkdir()
    training, _ = automodel.build(recipe, SampleFile(path), step={"kind": "graphed", "compile": True})
    training.setup()
    if is_compiled:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        training.observer.timer.replayed = lambda names: None  # what runs again marks by itself
        recorder = AsCaptured(training.model_parts[0])
        type(training).graphed = GraphedTraining(training, recorder=recorder, is_compiled=True, may_fall_back=False)
    training.run_train_validation_loop()
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    return [sample["loss"] for sample in samples if "loss" in sample], training.step_facts()


def both(overrides: list[str]) -> dict[str, Any]:
    """One case."""
    config = compose_config([*overrides, "data=recipe", "measure.warmup=1", "measure.steps=2"])
    recipe = located(config.train, Path(tempfile.mkdtemp()))
    uncompiled, _ = train(recipe, is_compiled=False)
    compiled, facts = train(recipe, is_compiled=True)
    return {"uncompiled_losses": uncompiled, "losses": compiled, **facts}


def main(cases: dict[str, list[str]]) -> None:
    """Train and print."""
    compile_in_place = torch.nn.Module.compile
    torch.nn.Module.compile = lambda self: compile_in_place(self, backend="aot_eager")
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    found = {name: both(overrides) for name, overrides in cases.items()}
    if torch.distributed.get_rank() == 0:
        print(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
