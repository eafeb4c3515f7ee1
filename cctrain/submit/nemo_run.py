"""launch=nemo_run: the command as a task of NeMo-Run, on any of its executors, its ranks started by torchrun.

The only file that imports NeMo-Run, the extra `nemo_run`. Executors that need more than numbers and words (a tunnel, a
packager) get their defaults here: this machine's Slurm, and an installed cctrain.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from cctrain.config import LaunchConfig
from cctrain.errors import RequestError, RunError
from cctrain.submit.submission import settings_of_the_job


def submit(launch: LaunchConfig, arguments: list[str], *, is_cpu: bool, dry_run: bool) -> int:
    """Run `arguments` on `launch.executor`: to the end on the local one, else until it is submitted."""
    try:
        import nemo_run
    except ImportError as error:
        raise RequestError(f"launch=nemo_run needs NeMo-Run: pip install 'cctrain[nemo_run]' ({error})") from error
    # NeMo-Run's local executor starts torchrun by its name, which lies beside a Python that need not be on the path.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    executor = _executor(nemo_run, launch, is_cpu=is_cpu)
    task = nemo_run.Script(path="cctrain", entrypoint="python", m=True, args=settings_of_the_job(arguments))
    is_local = isinstance(executor, nemo_run.LocalExecutor)
    with nemo_run.Experiment("cctrain", executor=executor) as experiment:
        job = experiment.add(task, name="train", tail_logs=is_local)
        if dry_run:
            experiment.dryrun()
        else:
            experiment.run(detach=not is_local, tail_logs=is_local)
    if dry_run:
        print(json.dumps({"dry_run": True, "executor": launch.executor, "settings": task.args}))  # noqa: T201
        return 0
    status = str(experiment.status(return_dict=True)[job]["status"]) if is_local else "submitted"
    print(json.dumps({"submitted": "nemo_run", "job": job, "status": status}))  # noqa: T201
    if status not in ("submitted", "SUCCEEDED"):
        raise RunError(f"NeMo-Run's task ended as {status}; its record, if it began one, says why")
    return 0


def _executor(nemo_run: Any, launch: LaunchConfig, *, is_cpu: bool) -> Any:
    kinds = {name.removesuffix("Executor").lower(): name for name in dir(nemo_run) if name.endswith("Executor")}
    kinds.pop("", None)
    if launch.executor.lower() not in kinds:
        raise RequestError(f"launch.executor={launch.executor}: allowed is {', '.join(sorted(kinds))}")
    kind = getattr(nemo_run, kinds[launch.executor.lower()])
    known = {field.name for field in dataclasses.fields(kind)}
    ranks = ("ntasks_per_node", "nprocs_per_node", *(() if is_cpu else ("gpus_per_node", "gpus")))
    settings: dict[str, Any] = dict.fromkeys(ranks, launch.nproc_per_node)
    settings |= dict.fromkeys(("nodes", "num_nodes"), launch.num_nodes)
    settings |= {"launcher": "torchrun", "packager": nemo_run.Packager()}
    if launch.executor.lower() == "slurm":
        home = Path(os.environ.get("NEMORUN_HOME", "~/.nemo_run")).expanduser()
        settings["tunnel"] = nemo_run.LocalTunnel(job_dir=str(home / "experiments"))
    settings = {name: value for name, value in settings.items() if name in known}
    for option in launch.options:
        name, _, value = option.partition("=")
        if name not in known:
            raise RequestError(f"launch.options: {kind.__name__} has no {name}; it has {', '.join(sorted(known))}")
        settings[name] = yaml.safe_load(value)
    try:
        return kind(**settings)
    except TypeError as error:
        raise RequestError(f"launch.options: {kind.__name__}: {error}") from error
