"""How the GPUs are connected, through NVML: NVLink, and where there is none, how far apart they sit on PCI Express."""

from __future__ import annotations

from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _Links:
    """The active links of one GPU."""

    version: int | None = None
    to_switch: int = 0
    to_gpu: dict[str, int] = field(default_factory=dict)
    """By the other's bus id."""

    @property
    def count(self) -> int:
        return self.to_switch + sum(self.to_gpu.values())


def observe(handles: list[Any]) -> dict[str, Any]:
    """`num_nvlinks` and `nvlink_version` of each GPU, and `matrix`: between two GPUs NV and the number of links that
    join them, or the way over PCI Express; None where the driver does not say."""
    links = [_links(handle) for handle in handles]
    ids = [bus_id(answer("nvmlDeviceGetPciInfo", handle)) for handle in handles]
    matrix: list[list[str | None]] = [["X"] * len(handles) for _ in handles]
    for i, one in enumerate(handles):
        for j, other in enumerate(handles):
            if i != j:
                status = answer("nvmlDeviceGetP2PStatus", one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
                shared = links[i].to_gpu.get(ids[j] or "", 0) + min(links[i].to_switch, links[j].to_switch)
                is_joined = status == pynvml.NVML_P2P_STATUS_OK and shared
                path = answer("nvmlDeviceGetTopologyCommonAncestor", one, other)
                matrix[i][j] = f"NV{shared}" if is_joined else _PATHS.get(path)
    return {
        "num_nvlinks": [each.count for each in links],
        "nvlink_version": [each.version for each in links],
        "matrix": matrix,
    }


def bus_id(pci: Any) -> str | None:
    """The PCI address as /sys spells it."""
    return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0" if pci else None


def _links(handle: Any) -> _Links:
    links = _Links()
    for number in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if answer("nvmlDeviceGetNvLinkState", handle, number) != pynvml.NVML_FEATURE_ENABLED:
            continue
        links.version = answer("nvmlDeviceGetNvLinkVersion", handle, number)
        kind = answer("nvmlDeviceGetNvLinkRemoteDeviceType", handle, number)
        other = bus_id(answer("nvmlDeviceGetNvLinkRemotePciInfo", handle, number))
        if kind == pynvml.NVML_NVLINK_DEVICE_TYPE_GPU and other:
            links.to_gpu[other] = links.to_gpu.get(other, 0) + 1
        else:
            links.to_switch += 1
    return links
