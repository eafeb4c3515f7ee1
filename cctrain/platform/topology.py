"""How the GPUs are connected, through NVML: NVLink, and where there is none, how far apart they sit on PCI Express."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pynvml

from cctrain.platform.nvml import answer

_PATHS = {  # by NVML's levels, with the abbreviations that `nvidia-smi topo -m` prints
    pynvml.NVML_TOPOLOGY_INTERNAL: "board",
    pynvml.NVML_TOPOLOGY_SINGLE: "PIX",
    pynvml.NVML_TOPOLOGY_MULTIPLE: "PXB",
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: "PHB",
    pynvml.NVML_TOPOLOGY_NODE: "NODE",
    pynvml.NVML_TOPOLOGY_SYSTEM: "SYS",
}


_SWITCH = "switch"


def observe(handles: list[Any]) -> dict[str, Any]:
    """`num_nvlinks` and `nvlink_version` of each GPU, and `matrix`: between two GPUs NV and the number of links that
    join them, or the way over PCI Express; None where the driver does not say."""
    links = [_links(handle) for handle in handles]
    ids = [bus_id(answer("nvmlDeviceGetPciInfo", handle)) for handle in handles]

    def way(i: int, j: int) -> str | None:
        if i == j:
            return "X"
        status = answer("nvmlDeviceGetP2PStatus", handles[i], handles[j], pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
        shared = links[i][ids[j]] + min(links[i][_SWITCH], links[j][_SWITCH])
        if status == pynvml.NVML_P2P_STATUS_OK and shared:
            return f"NV{shared}"
        return _PATHS.get(answer("nvmlDeviceGetTopologyCommonAncestor", handles[i], handles[j]))

    return {
        "num_nvlinks": [each.total() for each in links],
        "nvlink_version": [answer("nvmlDeviceGetNvLinkVersion", handle, 0) for handle in handles],
        "matrix": [[way(i, j) for j in range(len(handles))] for i in range(len(handles))],
    }


def bus_id(pci: Any) -> str | None:
    """The PCI address as /sys spells it."""
    return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0" if pci else None


def _links(handle: Any) -> Counter[str | None]:
    """How many active links lead to a GPU, by its bus id, or to a switch."""
    links: Counter[str | None] = Counter()
    for number in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if answer("nvmlDeviceGetNvLinkState", handle, number) == pynvml.NVML_FEATURE_ENABLED:
            kind = answer("nvmlDeviceGetNvLinkRemoteDeviceType", handle, number)
            other = bus_id(answer("nvmlDeviceGetNvLinkRemotePciInfo", handle, number))
            links[other if kind == pynvml.NVML_NVLINK_DEVICE_TYPE_GPU and other else _SWITCH] += 1
    return links
