"""The injection library, built at first use with the system's compiler, kept by the hash of what it is made from."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cctrain.errors import PlatformError

SOURCE = Path(__file__).parent / "injection" / "inject.c"
# The threads' variables are asked for twice a launch: found through the loader they would be a third of its cost.
_FLAGS = ("-O2", "-shared", "-fPIC", "-ftls-model=initial-exec", "-std=gnu11", "-Werror=implicit-function-declaration")
_CALLS = ("cupti_driver_cbid.h", "generated_cuda_meta.h")
"""CUPTI's headers that number the driver's calls: an upgrade in place brings others."""


@dataclass(frozen=True, slots=True)
class Cupti:
    """Where CUPTI lies on this machine."""

    headers: tuple[Path, ...]
    """Directories of cupti_callbacks.h and cuda.h."""
    library: Path


def injection_library() -> Path:
    """The library that the CUDA driver loads. Raises PlatformError without a compiler or CUPTI."""
    return build(find_cupti(), _cache())


def build(cupti: Cupti, cache: Path, source: Path = SOURCE) -> Path:
    """Build the library from `source`, beside which are its headers, into `cache`, unless it is there. Raises
    PlatformError where it does not compile."""
    compiler = shlex.split(os.environ.get("CC") or "") or _found("cc") or _found("gcc") or _found("clang")
    command = [*_FLAGS, *(f"-I{folder}" for folder in cupti.headers)]
    sources = [path.read_bytes() for path in sorted(source.parent.glob("*.[ch]"))]
    sources += [path.read_bytes() for folder in cupti.headers for name in _CALLS for path in folder.glob(name)]
    made_from = [*sources, "\0".join([*command, str(cupti.library)]).encode()]
    name = f"inject-{hashlib.sha256(b''.join(made_from)).hexdigest()[:16]}.so"
    if (cache / name).is_file():
        return cache / name
    if not compiler:
        raise PlatformError("emulation builds a small C library, and finds no compiler: install gcc, or set CC")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            # Renamed whole into place: another run may be building it, too.
            _compile([*compiler, *command, str(source)], cupti.library, Path(scratch) / name)
            (Path(scratch) / name).replace(cache / name)
    except OSError as error:
        raise PlatformError(
            f"the injection library cannot be built in {cache} ({error}): set XDG_CACHE_HOME"
        ) from error
    return cache / name


def _found(compiler: str) -> list[str]:
    return [compiler] if shutil.which(compiler) else []


def _compile(command: list[str], cupti: Path, target: Path) -> None:
    link = [str(cupti), f"-Wl,-rpath,{cupti.parent}", "-ldl", "-lpthread", "-o", str(target)]
    try:
        done = subprocess.run([*command, *link], capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        why = f"the compiler {command[0]} cannot be run ({error.strerror}): install gcc, or set CC"
        raise PlatformError(why) from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:300])
        raise PlatformError(f"the injection library does not compile with {command[0]}: {first}")


def find_cupti() -> Cupti:
    """CUPTI as a package of the environment, else of a CUDA toolkit. Raises PlatformError where there is neither."""
    packaged = [path for name in _packages() for path in metadata.files(name) or [] if path.name in _NEEDED]
    found: dict[str, Path] = {}
    for path in packaged:
        found.setdefault(_NEEDED[path.name], Path(str(path.locate())))
    if len(found) < len(set(_NEEDED.values())):
        found |= _of_toolkit(Path(os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"))
    if len(found) < len(set(_NEEDED.values())):
        lacking = sorted(set(_NEEDED.values()) - set(found))
        raise PlatformError(
            f"emulation needs CUPTI, and {', '.join(lacking)} is not found: pip install nvidia-cuda-cupti "
            "nvidia-cuda-runtime (of your torch's CUDA version), or set CUDA_HOME to a CUDA toolkit"
        )
    headers = dict.fromkeys(found[name].parent for name in ("cupti_callbacks.h", "cuda.h"))
    return Cupti(tuple(headers), found["libcupti"].resolve())


_NEEDED = {"cupti_callbacks.h": "cupti_callbacks.h", "cuda.h": "cuda.h"} | {
    f"libcupti.so.{version}": "libcupti" for version in (14, 13, 12)
}


def _packages() -> list[str]:
    """NVIDIA's packages that may hold it: their names end in CUDA's version up to 12."""
    names = {str(dist.metadata["Name"]).lower() for dist in metadata.distributions() if dist.metadata["Name"]}
    return sorted(name for name in names if name.startswith(("nvidia-cuda-cupti", "nvidia-cuda-runtime")))


def _of_toolkit(home: Path) -> dict[str, Path]:
    places = (home / "include", home / "extras/CUPTI/include", home / "lib64", home / "extras/CUPTI/lib64")
    return {kind: place / name for place in places for name, kind in _NEEDED.items() if (place / name).is_file()}


def _cache() -> Path:
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise PlatformError(f"the injection library has no place to lie ({error}): set XDG_CACHE_HOME") from error
    return cache.absolute() / "cctrain"  # a program that is injected into may change its directory
