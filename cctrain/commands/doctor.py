"""The verb doctor: what this machine is, which recipes fit it, and what will hurt under CC. Three seconds, no torch.

    python -m cctrain doctor                                  all recipes that come with cctrain
    python -m cctrain doctor --recipe llama70b_peft my.yaml   these
    python -m cctrain doctor --json                           no table

A table, and as the last line of stdout one JSON object. The exit code is 0 whatever is found; 2 for an unknown recipe.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import yaml

from cctrain import launcher
from cctrain.config import Config, LaunchConfig, RecipeConfig
from cctrain.doctor.fit import Machine
from cctrain.doctor.judge import judge
from cctrain.errors import RequestError
from cctrain.packaged import CONF
from cctrain.platform import cc, gpu, machine
from cctrain.records import finite
from cctrain.request.compose import compose_config
from cctrain.request.recipe import build_recipe


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"doctor: {message}")


def run(arguments: list[str]) -> int:
    """Look, judge, print. Returns 0; raises RequestError for a recipe that does not exist."""
    parser = _Parser(prog="python -m cctrain doctor", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
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
        configs = [config_of(name) for name in names]
        gpus, seen = looking.result()
    here = Machine(len(gpus.names), min(gpus.memory_gib, default=0.0))
    findings = [judge(config, here, environment) for config in configs]
    problem = cc.problem(gpus.cc)
    mode = "unknown" if problem else "on" if cc.is_on(gpus.cc) else "off"
    if not flags.json:
        from cctrain.doctor.table import print_findings

        print_findings(seen, mode, problem, findings)
    recipes = [dataclasses.asdict(finding) for finding in findings]
    facts = {"mode": mode, "problem": problem, "platform": seen, "recipes": recipes, "exit_code": 0}
    print(json.dumps(finite(facts), allow_nan=False))
    return 0


def config_of(recipe: str) -> Config:
    """What `recipe=` composes to; without Hydra, which takes a tenth of a second, where the entry in conf/ holds but
    the names and ranks."""
    path = CONF / "recipe" / f"{recipe}.yaml"
    entry = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if set(entry) != {"recipe", "launch"}:
        return compose_config([f"recipe={recipe}"], build_recipe)
    config = Config(recipe=RecipeConfig(**entry["recipe"]), launch=LaunchConfig(**entry["launch"]))
    config.train = build_recipe(config)
    return config
