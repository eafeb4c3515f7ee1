"""What of the other fine-tuning libraries installs and imports here, each in an environment of its own over this one's
packages: several of them pin versions of transformers that AutoModel does not run with.

    python benchmarks/others/install.py DIR                  all of them
    python benchmarks/others/install.py DIR torchtitan

pip's own variables say where from (PIP_FIND_LINKS, PIP_NO_INDEX). DIR/others.json and the last line of stdout say of
each its version and Python, or at what it failed and with which error. `benchmarks/peers.py --others DIR/others.json`
then runs those that run.py trains.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

PACKAGES = {
    "torchtitan": (
        *("torchtitan==0.3.0", "torch_checkpointing", "spmd_types==0.2.3", "tyro", "docstring_parser", "typeguard"),
        *("shtab", "einops", "tensorboard", "absl-py", "grpcio", "markdown", "werkzeug", "markupsafe"),
        "tensorboard-data-server",
    ),
    # torchao from 0.14 on has no torchao.dtypes.nf4tensor, which it imports.
    "torchtune": (
        *("torchtune==0.6.1", "torchao==0.13.0", "kagglehub", "sentencepiece", "tiktoken", "blobfile", "hf_transfer"),
        *("pycryptodomex", "lxml"),
    ),
    # It does without torchvision and xformers, which have to be built for the torch that is there.
    "unsloth": (
        *("unsloth", "unsloth_zoo", "transformers==5.17.0", "trl==1.15.0", "bitsandbytes", "cut_cross_entropy"),
        *("tyro", "docstring_parser", "typeguard", "shtab", "sentencepiece", "hf_transfer"),
        *("huggingface_hub<2", "diffusers", "nest_asyncio", "structlog", "json5", "einops"),
    ),
    "axolotl": (
        *("axolotl==0.19.0", "transformers==5.16.1", "accelerate==1.13.0", "peft==0.20.0", "trl==1.9.0"),
        *("huggingface_hub==1.17.0", "tokenizers==0.23.1", "datasets==4.8.4", "optimum==1.16.2", "evaluate==0.4.1"),
        *(
            "kernels==0.16.0",
            "kernels-data",
            "bitsandbytes",
            "addict",
            "fire",
            "termcolor",
            "colorama",
            "art",
            "einops",
            "schedulefree",
            "posthog",
        ),
        *("axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6", "python-dotenv==1.0.1", "backoff"),
        *("zstandard", "numba", "llvmlite", "langdetect", "immutabledict", "fastcore"),
    ),
}
IMPORTS = {
    "torchtitan": "torchtitan.trainer",
    "torchtune": "torchtune.models.llama3_1",
    "unsloth": "unsloth",
    "axolotl": "axolotl.train",
}
_WITHOUT_GPU = {"UNSLOTH_ALLOW_CPU": "1"}
"""For an import only."""
_LONGEST_S = 600


def attempt(name: str, folder: Path) -> dict[str, Any]:
    """Make its environment, install, import. Returns what happened."""
    home = folder / name
    venv.create(home, with_pip=True, clear=True)
    python = home / "bin" / "python"
    packages = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "zz_base.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install: list[str | Path] = [python, "-m", "pip", "install", "-q", "--no-deps", *PACKAGES[name]]
    probe = f"import importlib.metadata as m, {IMPORTS[name]}; print(m.version({name!r}))"
    commands: dict[str, list[str | Path]] = {"install": install, "import": [python, "-c", probe]}
    for stage, command in commands.items():
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=_LONGEST_S,
                cwd=home,  # Unsloth leaves a directory where it is imported
                env=os.environ | _WITHOUT_GPU,
            )
        except subprocess.TimeoutExpired:
            return {"failed_at": stage, "error": f"not done in {_LONGEST_S} s"}
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
            return {"failed_at": stage, "error": lines[-1][:600] if lines else f"exit code {done.returncode}"}
    return {"version": done.stdout.split()[-1], "python": str(python)}


def main() -> None:
    """Try, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(PACKAGES), metavar="NAME", help=", ".join(PACKAGES))
    flags = parser.parse_args()
    if unknown := sorted(set(flags.names) - set(PACKAGES)):
        parser.error(f"{', '.join(unknown)}: allowed is {', '.join(PACKAGES)}")
    flags.folder.mkdir(parents=True, exist_ok=True)
    path = flags.folder.resolve() / "others.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in flags.names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = attempt(name, path.parent)
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
