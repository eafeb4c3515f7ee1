"""launch=kubernetes: launch/kubernetes.yaml, filled in, by kubectl."""

from __future__ import annotations

import yaml

from cctrain.config import LaunchConfig
from cctrain.errors import RequestError
from cctrain.packaged import LAUNCH
from cctrain.submit.submission import Submission, settings_of_the_job


def submission(launch: LaunchConfig, arguments: list[str], *, is_cpu: bool) -> Submission:
    """The TrainJob that `launch` asks for."""
    if not launch.image:
        raise RequestError("launch=kubernetes needs launch.image=IMAGE, a container image with cctrain installed")
    job = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text(encoding="utf-8"))
    trainer = job["spec"]["trainer"]
    settings = settings_of_the_job(arguments)
    if not any(setting.startswith("run_root=") for setting in settings):
        settings.append("run_root=/shared/runs")  # on the volume: what a pod writes elsewhere goes with it
    trainer |= {
        "image": launch.image,
        "numNodes": launch.num_nodes,
        "numProcPerNode": launch.nproc_per_node,
        "args": settings,
    }
    if is_cpu:
        del trainer["resourcesPerNode"]
    else:
        trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] = launch.nproc_per_node
    manifest = yaml.safe_dump(job, sort_keys=False)
    return Submission(["kubectl", "create", *launch.options, "-f", "-"], manifest, stdin=manifest)
