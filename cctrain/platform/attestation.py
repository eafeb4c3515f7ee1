"""The GPUs' signed word on the state they are in, for a nonce that ties it to one run.

The nonce is the SHA-256 of the run's identity and samples, so a report cannot have been made before the run was over,
nor belong to another. cctrain stores the report and its certificates and judges neither: that takes NVIDIA's verifier.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pynvml

from cctrain.platform.nvml import session, visible_handles


def nonce(identity: dict[str, Any], sample_files: Iterable[Path]) -> bytes:
    """32 bytes: SHA-256 of the identity as JSON with sorted keys and no spaces, then for each file, sorted by name, a
    line of its name and its SHA-256 in hexadecimal."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":")) + "\n"
    for path in sorted(sample_files, key=lambda path: path.name):
        with path.open("rb") as file:
            text += f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n"
    return hashlib.sha256(text.encode()).digest()


def attest(nonce: bytes, num_gpus: int, mode: str, elsewhere: Sequence[str] = ()) -> dict[str, Any]:
    """`nonce` in hexadecimal, and of each GPU that trained `gpus`: `report`, `certificates` of the GPU and of the
    attestation, in base64; or `missing`, why there is none. `mode` is the run's. The GPUs of the hosts `elsewhere`
    cannot be asked from here: each host is one entry."""
    if mode in ("off", "emulated"):
        return {"nonce": nonce.hex(), "missing": "CC is off: there is nothing to attest"}
    try:
        with session():
            gpus = [_attest_one(handle, nonce) for handle in visible_handles()[:num_gpus]]
    except pynvml.NVMLError as error:
        return {"nonce": nonce.hex(), "missing": f"NVML: {error}"}
    gpus += [{"host": host, "missing": "on another machine"} for host in elsewhere]
    return {"nonce": nonce.hex(), "gpus": gpus} if gpus else {"nonce": nonce.hex(), "missing": "no GPU took part"}


def _attest_one(handle: Any, nonce: bytes) -> dict[str, Any]:
    try:
        report = pynvml.nvmlDeviceGetConfComputeGpuAttestationReport(handle, nonce)
        certificate = pynvml.nvmlDeviceGetConfComputeGpuCertificate(handle)
    except pynvml.NVMLError as error:
        return {"missing": f"NVML: {error}"}
    cec = _base64(report.cecAttestationReport, report.cecAttestationReportSize)
    return {
        "report": _base64(report.attestationReport, report.attestationReportSize),
        "cec_report": cec if report.isCecAttestationReportPresent else None,
        "certificate": _base64(certificate.certChain, certificate.certChainSize),
        "attestation_certificate": _base64(certificate.attestationCertChain, certificate.attestationCertChainSize),
    }


def _base64(content: Any, size: int) -> str:
    return base64.b64encode(bytes(content[:size])).decode()
