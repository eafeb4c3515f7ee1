"""`launch=` anything but torchrun: submit this command, or show with dry_run=true what would be submitted."""

from __future__ import annotations

import json
import shlex

from cctrain.config import LaunchConfig, LaunchKind
from cctrain.errors import RequestError
from cctrain.submit import kubernetes, nemo_run, slurm


def submit(launch: LaunchConfig, arguments: list[str], *, is_cpu: bool, dry_run: bool) -> int:
    """Submit `arguments` as a job of `launch.kind`, and print which it is."""
    if launch.nproc_per_node is None:
        raise RequestError(
            f"launch={launch.kind.value} needs launch.nproc_per_node, the GPUs to use of each machine: those of this "
            "one are not those of the job"
        )
    if launch.kind is LaunchKind.nemo_run:
        return nemo_run.submit(launch, arguments, is_cpu=is_cpu, dry_run=dry_run)
    build = {LaunchKind.slurm: slurm.submission, LaunchKind.kubernetes: kubernetes.submission}[launch.kind]
    job = build(launch, arguments, is_cpu=is_cpu)
    if dry_run:
        print(f"# {shlex.join(job.command)}", job.text, sep="\n")  # noqa: T201 - what the user asked to see
        print(json.dumps({"dry_run": True, "command": job.command}))  # noqa: T201 - the last line, as of every verb
        return 0
    print(json.dumps({"submitted": launch.kind.value, "job": job.submit()}))  # noqa: T201
    return 0
