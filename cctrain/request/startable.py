"""Whether a composed request could be started, as far as the request alone tells: one list for every verb that runs.

But for the user's own file, which is read through (`check_jsonl`): a search checks hundreds of requests of one file.
"""

from __future__ import annotations

from cctrain.config import Config
from cctrain.request.allowed import check_recipe
from cctrain.request.checks import Layout, check_layout, smallest_world
from cctrain.request.data import check_packing
from cctrain.request.graphed import check_step
from cctrain.request.hf import check_engine
from cctrain.request.strategy import check_strategy


def check_request(config: Config, num_ranks: int) -> Layout:
    """The layout on `num_ranks` ranks. Raises RequestError for what a run is refused with on any machine."""
    check_recipe(config.train, config.allow_targets)
    check_engine(config)
    check_strategy(config)
    check_packing(config.train, config.data)
    layout = check_layout(config.train, config.measure, num_ranks)
    check_step(config, layout)
    return layout


def ranks_per_node(config: Config, num_gpus: int = 0) -> int:
    """Those asked for, else one a GPU, else the fewest that hold the recipe."""
    fewest = max(1, smallest_world(config.train) // config.launch.num_nodes)
    return config.launch.nproc_per_node or num_gpus or fewest
