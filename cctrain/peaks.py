"""Peaks of GPUs from their datasheets, for MFU and HFU."""

from __future__ import annotations

import re

# Dense BF16, without sparsity. Sheets since Hopper print twice that, "with sparsity", here behind the name of the GPU.
_PEAKS_TFLOPS = {
    r"NVIDIA A100-SXM4-\d+GB|NVIDIA A100-PCIE-\d+GB|NVIDIA A100 \d+GB PCIe": 312,  # A100 datasheet
    r"NVIDIA L40S": 362.05,  # L40S datasheet
    r"NVIDIA H100 \d+GB HBM3": 989,  # H100 datasheet: SXM 1,979
    r"NVIDIA H100 PCIe": 756,  # H100 datasheet, the edition with this card: PCIe 1,513
    r"NVIDIA H100 NVL": 835,  # H100 datasheet: NVL 1,671
    r"NVIDIA H200": 989,  # H200 datasheet: SXM 1,979
    r"NVIDIA H200 NVL": 835,  # H200 datasheet: NVL 1,671
    r"NVIDIA B200": 2250,  # Blackwell datasheet: HGX B200, 36 PFLOPS for 8 GPUs
    r"NVIDIA GB200": 2500,  # Blackwell datasheet: GB200 superchip, 10 PFLOPS for 2 GPUs
    r"NVIDIA B300 SXM6 AC": 2250,  # HGX datasheet: HGX B300, 36 PFLOPS for 8 GPUs
    r"NVIDIA GB300": 2500,  # GB300 NVL72 datasheet: 360 PFLOPS for 72 GPUs
}


def peak_flops(gpu_name: str) -> float | None:
    """Peak of dense BF16 matrix products in FLOP/s, by the name that NVML gives the GPU.

    None for a GPU that is not in the table, and for a part of one: the names of MIG and vGPU slices go on.
    """
    tflops = (tflops for name, tflops in _PEAKS_TFLOPS.items() if re.fullmatch(name, gpu_name))
    return next((number * 1e12 for number in tflops), None)
