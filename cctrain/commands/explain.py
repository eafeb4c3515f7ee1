"""The verb explain: where the loss under confidential computing (CC) comes from.

    python -m cctrain explain recipe=llama8b_peft weights=random data=synthetic tolls=b300

An emulated run (`cc=emulated`, takes the same settings) with further blocks of steps: each class of tolls alone, and
each left out. A table of what every class costs a step with its interval, and what remains unexplained. Without
measure.steps= there are 5 steps a block.
"""

from __future__ import annotations

from cctrain.commands import train
from cctrain.config import DEFAULT_BLOCKS
from cctrain.emulation.arms import arms
from cctrain.emulation.profile import load_profile
from cctrain.errors import RequestError

_STEPS_OF_A_BLOCK = 5


def run(arguments: list[str]) -> int:
    """Run and explain. Returns the exit code; raises CctrainError."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    return train.run(settings(arguments))


def settings(arguments: list[str]) -> list[str]:
    """The settings of the run that `arguments` ask for. Raises RequestError."""
    given = {argument.partition("=")[0]: argument.partition("=")[2] for argument in arguments}
    if "tolls" not in given and "--tolls" in given:
        raise RequestError("explain takes its tolls as a run does: tolls=NAME, without the two dashes")
    if "tolls" not in given:
        raise RequestError("explain needs the tolls to inject: add tolls=b300, tolls=hopper, tolls=h100 or tolls=FILE")
    if given.get("cc", "emulated") != "emulated":
        raise RequestError(f"cc={given['cc']}: explain injects tolls, which is cc=emulated; leave cc= out")
    own = [argument for argument in arguments if not argument.startswith("cc=")]
    if "measure.steps" not in given:
        has_graphs = (given.get("step") or given.get("step.kind") or "stock") != "stock"
        num_arms = len(arms(load_profile(given["tolls"]), is_explained=True, num_ranks=2, has_graphs=has_graphs))
        rounds = int(given["cc.blocks"]) if given.get("cc.blocks", "").isdigit() else DEFAULT_BLOCKS
        own.append(f"measure.steps={num_arms * rounds * _STEPS_OF_A_BLOCK}")
    return [*own, "cc=emulated", "cc.explain=true"]
