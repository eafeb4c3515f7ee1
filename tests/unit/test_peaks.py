"""Peaks of GPUs by the names that the driver gives them."""

import pytest

from cctrain.peaks import peak_flops


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B300 SXM6 AC", 2250),
        ("NVIDIA GB300", 2500),
    ],
)
def test_a_gpu_is_known_by_the_name_that_the_driver_gives_it(name, tflops):
    assert peak_flops(name) == tflops * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "",
        "NVIDIA H100",
        "NVIDIA H20",
        "NVIDIA H800",
        "NVIDIA A10",
        "NVIDIA L40",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H200 MIG 3g.71gb",
        "NVIDIA H100-80C",
        "NVIDIA L40S-24Q",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "AMD Instinct MI300X",
    ],
)
def test_a_gpu_without_a_datasheet_and_a_part_of_one_have_no_peak(name):
    assert peak_flops(name) is None
