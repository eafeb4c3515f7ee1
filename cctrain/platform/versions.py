"""Versions of what trains, from the installed packages: the parent does not import torch. A rank confirms them."""

from __future__ import annotations

from importlib import metadata

_PACKAGES = ("torch", "nemo-automodel", "transformers", "triton", "cctrain")
_ENGINE_PACKAGES = {"hf": ("accelerate", "peft", "liger-kernel")}
_CUDA_PACKAGES = {"cuda_runtime": "nvidia-cuda-runtime", "nccl": "nvidia-nccl", "cudnn": "nvidia-cudnn"}
_SUFFIXES = ("-cu13", "-cu12", "")
"""CUDA 13 dropped them from the names of some."""


def package_versions(engine: str = "automodel") -> dict[str, str | None]:
    """What decides a run's speed and must match to be compared; None for what is not installed."""
    return {name: _version(name) for name in (*_PACKAGES, *_ENGINE_PACKAGES.get(engine, ()))}


def cuda_versions() -> dict[str, str | None]:
    """CUDA's runtime, NCCL and cuDNN where they came as packages; None where the system's are used."""
    return {
        name: next((found for found in (_version(package + suffix) for suffix in _SUFFIXES) if found), None)
        for name, package in _CUDA_PACKAGES.items()
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
