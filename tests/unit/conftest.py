"""Stubs of what the GPU's driver gives: CUDA and CUPTI, with the injection library, and NVML. Built once for the files
that test against them."""

import os
import shutil

import pytest

from cctrain.emulation.build import build
from cctrain.emulation.injector import CROSSINGS, INJECTION, TOLLS
from tests.stub_driver import Gpu, build_driver
from tests.stub_nvml import Drivers, StubNvml


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Start CUDA in this process, with the library injected; for tests in a process of their own."""
    if not shutil.which("gcc"):
        pytest.skip("the stub of the driver needs gcc")
    cupti = build_driver(tmp_path_factory.mktemp("driver"))
    library = build(cupti, tmp_path_factory.mktemp("cache"))

    def start_cuda(tolls="", crossings="", library=library, **variables):
        os.environ |= {INJECTION: str(library), TOLLS: tolls, CROSSINGS: str(crossings)}
        os.environ |= {f"STUB_DRIVER_{name.upper()}": str(value) for name, value in variables.items()}
        return Gpu(cupti.library).init()

    start_cuda.library, start_cuda.stub = library, cupti.library
    return start_cuda


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    drivers = Drivers(StubNvml(tmp_path_factory.mktemp("stubs")))
    yield drivers
    drivers.close()
