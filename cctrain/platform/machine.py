"""All that is observed of this machine before anything starts, as the record's `platform`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cctrain.platform import cc, container, guest, host, multicast, repository, swiotlb, tdisp, versions
from cctrain.platform.gpu import Gpus


def observe(gpus: Gpus, environment: Mapping[str, str], root: Path = Path("/")) -> dict[str, Any]:
    """Plain dictionaries, null for what could not be read. `environment` is the ranks'; `nccl`, `attestation` and
    `other_machines` are filled in when the run is over."""
    multicast_answer = multicast.begin(len(gpus.names))
    return {
        "gpus": dataclasses.asdict(gpus),
        "cc": cc.facts(gpus.cc),
        "guest": guest.observe(root),
        "swiotlb": swiotlb.observe(root),
        "tdisp": tdisp.observe(root),
        "host": host.observe(environment, root),
        "container": container.observe(environment, root),
        "versions": {
            "driver": gpus.driver,
            "cuda_driver": gpus.cuda,
            **versions.cuda_versions(),
            **versions.package_versions(),
        },
        "repository": repository.observe(Path.cwd()),
        "multicast": multicast_answer(),
        "nccl": None,
        "attestation": None,
        "other_machines": None,
    }
