"""launch=slurm: launch/slurm.sh by sbatch, one task a rank."""

from __future__ import annotations

import sys

from cctrain.config import LaunchConfig
from cctrain.packaged import LAUNCH
from cctrain.submit.submission import Submission, settings_of_the_job


def submission(launch: LaunchConfig, arguments: list[str], *, is_cpu: bool) -> Submission:
    """What `launch` asks sbatch for. Later options win, so that the user's do."""
    script = LAUNCH / "slurm.sh"
    options = [f"--nodes={launch.num_nodes}", f"--ntasks-per-node={launch.nproc_per_node}"]
    if not is_cpu:
        options.append(f"--gpus-per-node={launch.nproc_per_node}")
    command = ["sbatch", "--parsable", *options, *launch.options, str(script), *settings_of_the_job(arguments)]
    return Submission(command, script.read_text(encoding="utf-8"), environment={"CCTRAIN_PYTHON": sys.executable})
