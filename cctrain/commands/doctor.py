"""The verb doctor: what this machine is, which recipes fit it, and what will hurt under CC. Three seconds, no torch.

    python -m cctrain doctor                                  all recipes that come with cctrain
    python -m cctrain doctor --recipe llama70b_peft my.yaml   these
    python -m cctrain doctor --json                           no table

A table, and as the last line of stdout one JSON object. The exit code is 0 whatever is found; 2 for an unknown recipe.
"""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cctrain import launcher
from cctrain.commands.flags import Parser
from cctrain.doctor.fit import Machine
from cctrain.doctor.judge import judge
from cctrain.packaged import CONF
from cctrain.platform import cc, gpu, machine
from cctrain.records import finite
from cctrain.request.compose import compose_config


def run(arguments: list[str]) -> int:
    """Look, judge, print. Returns 0; raises RequestError for a recipe that does not exist or cannot run."""
    parser = Parser("doctor", __doc__)
    parser.add_argument("--recipe", nargs="+", metavar="NAME|FILE", help="judge these, not all")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    flags = parser.parse_args(arguments)
    environment = launcher.rank_environment(is_cpu=False)

    def look() -> tuple[gpu.Gpus, dict[str, Any]]:
        gpus = gpu.observe()
        return gpus, machine.observe(gpus, environment)

    with ThreadPoolExecutor(1) as pool:  # the driver may take a second to answer, and so do the recipes
        looking = pool.submit(look)
        names = flags.recipe or sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))
        configs = [compose_config([f"recipe={name}"]) for name in names]
        gpus, seen = looking.result()
    here = Machine(len(gpus.names), min(gpus.memory_gib, default=0.0))
    findings = [judge(config, here) for config in configs]
    problem, mode = cc.problem(gpus.cc), cc.seen_mode(gpus.cc)
    if not flags.json:
        from cctrain.doctor.table import print_findings

        print_findings(seen, mode, problem, findings)
    recipes = [dataclasses.asdict(finding) for finding in findings]
    facts = {"mode": mode, "problem": problem, "platform": seen, "recipes": recipes, "exit_code": 0}
    print(json.dumps(finite(facts), allow_nan=False))
    return 0
