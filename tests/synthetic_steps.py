"""Machines that never were, for tests of the search: step times and memory of every point, by formula and a seed.

`family` is the search's own model with other constants; the rest are machines that it does not know: a GPU whose rate
saturates, a host and a GPU that never overlap, one that gets slower with large micro-batches, one whose host is shared
with others and so moves by 8 % where it is the bottleneck, and one where every point is off by some percent of its own.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace

import numpy as np

from cctrain.config import Config
from cctrain.packaged import RECIPES
from cctrain.peaks import peak_flops
from cctrain.request.checks import Layout
from cctrain.request.data import row_tokens
from cctrain.tune import space
from cctrain.tune.point import COMPLETE, OUT_OF_MEMORY, Observation, Point
from cctrain.tune.search import Problem, is_allowed
from cctrain.tune.step_time import asked, log_step_time, prior_of
from cctrain.tune.work import Model, work_of
from cctrain.tune_config import TuneConfig

H200_GIB = 139.7
PEAK = peak_flops("NVIDIA H200")
RECIPE = {
    "model": {"torch_dtype": "bf16"},
    "step_scheduler": {"global_batch_size": 16, "local_batch_size": 4},
    "peft": {"target_modules": "*_proj", "dim": 8},
    "optimizer": {"_target_": "torch.optim.Adam"},
    "dataset": {},
    "distributed": {"tp_size": 1},
}


def problem(
    base=None, ranks=1, steps=("stock", "graphed"), recipe=RECIPE, memory_gib=H200_GIB, min_keep=None, **tune
) -> Problem:
    """A search over Llama 8B LoRA at 512 tokens a row, unless `tune` says otherwise."""
    tune = {"global_batch": [4, 32], **tune}
    config = Config(tune=TuneConfig(memory_margin=0.1, **tune), train=recipe)
    config.data.seq_len = 512
    layout = Layout(world=ranks, data=ranks, tensor=1, pipeline=1, context=1)
    model = Model(json.loads((RECIPES / "models/llama-3.1-8b/config.json").read_text()), 1, 1)
    start = space.base_point(config, layout)
    stock = [point for point in space.points(config, start, layout, model.config) if point.step == "stock"]
    points = [replace(point, step=step) for point in stock for step in steps]
    works = {}
    for point in {*points, start}:
        longest = row_tokens(recipe, point.seq_len, point.packing)
        works[point] = work_of(point, space.recipe_of(recipe, start, point), model, longest)
    return Problem(
        base=base or start,
        points=points,
        works=works,
        num_ranks=ranks,
        prior=prior_of(PEAK, is_cpu=False),
        memory_gib=memory_gib,
        memory_margin=0.1,
        min_keep=min_keep,
    )


@dataclass
class Machine:
    """An oracle: what a trial of each point would come to."""

    problem: Problem
    family: str
    seed: int
    tolled: float = 1.6
    """Cost of a crossing with tolls over without."""
    noise: float = 0.01
    rng: np.random.Generator = field(init=False)
    draws: dict = field(init=False)

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)
        prior = self.problem.prior
        off = self.rng.normal(size=len(prior.middle)) * prior.spread
        self.draws = {
            "constants": prior.middle + off,
            "rate": math.exp(prior.middle[1] + off[1]),
            "cost": math.exp(prior.middle[0] + off[0]),
            "knee": self.rng.uniform(500, 4000),
            "fixed": self.rng.uniform(0.002, 0.05),
            "graphed": self.rng.uniform(0.75, 1.05),
            "memory": np.exp(self.rng.normal(size=2) * (0.1, 0.25)),
        }
        self.off_by = {point: self.rng.normal() for point in sorted(self.problem.works, key=lambda one: one.label)}

    def step_time_s(self, point: Point, crossing: float) -> float:
        works, draws = self.problem.works, self.draws
        work = works[point]
        if self.family == "family":
            what = asked([point], works, np.array([work.crossings * crossing]), np.ones(1))
            return math.exp(log_step_time(draws["constants"], what)[0])
        host = work.crossings * draws["cost"] * crossing
        tokens = point.micro_batch * work.row_tokens
        graphed = draws["graphed"] if point.step != "stock" else 1.0
        device = work.flops / draws["rate"] * graphed
        if self.family == "saturating":
            device *= 1 + draws["knee"] / tokens
        if self.family == "slower":
            device *= 1 + (tokens / (4 * draws["knee"])) ** 2
        both = host + device if self.family == "no overlap" else max(host, device)
        return point.accumulation * both + draws["fixed"]

    def spread(self, point: Point) -> float:
        """Standard deviation of the logarithm of a run's step time."""
        work = self.problem.works[point]
        is_host_bound = work.crossings * self.draws["cost"] * self.tolled > work.flops / self.draws["rate"]
        return {"rugged": 0.04, "shared host": 0.08 if is_host_bound else 0.005}.get(self.family, self.noise)

    def trial(self, point: Point) -> Observation:
        stays, grows = self.problem.works[point].memory_gib
        peak = stays * self.draws["memory"][0] + grows * self.draws["memory"][1]
        if self.problem.memory_gib and peak > 0.97 * self.problem.memory_gib:
            return Observation(point=point, outcome=OUT_OF_MEMORY, why="rank 0: out of GPU memory")
        own = math.exp(self.spread(point) * self.off_by[point])
        seconds = self.step_time_s(point, self.tolled) * own
        plain = self.step_time_s(point, 1.0) * own
        tokens = point.global_batch * self.problem.works[point].row_tokens
        return Observation(
            point=point,
            outcome=COMPLETE,
            rate=tokens / seconds / self.problem.num_ranks,
            step_time_s=seconds,
            plain_step_time_s=plain,
            keep_ratio=plain / seconds,
            real_tokens=tokens,
            padded_tokens=tokens,
            crossings=None,
            peak_gib=peak,
        )

    def best_rate(self) -> float:
        """Of the whole grid."""
        grid = [self.trial(point) for point in self.problem.points]
        return max(one.rate for one in grid if is_allowed(self.problem, one))
