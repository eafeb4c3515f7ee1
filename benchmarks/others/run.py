"""One line of `peers.py` that is no recipe of AutoModel: another library's own trainer on the same shape of model.

    PYTHON benchmarks/others/run.py torchtitan --task lora --rows ROWS.pt --steps 96 --warmup 15
    PYTHON benchmarks/others/run.py torchtune --size tiny --rows ROWS.pt --steps 8 --warmup 2     on a CPU
    python -m cctrain emulate -- PYTHON benchmarks/others/run.py ... --tolls b300 --blocks 4      plain and tolled steps

Runs in that library's environment (`install.py`). Its loop is left as it is; what is put in place are the data (those
that the recipe's own loader gives the other lines, token ids and labels, which `peers_rows.py` has written to ROWS.pt
for as many steps), the weights (random), and a time stamp of cctrain's at each step's end. All but torchtitan
shift labels by themselves, so that the last token of a row, whose label is the token after the row, has none there.
LoRA of rank 8 on all linear layers of attention and MLP, Adam, gradients clipped to 1, bf16, no activation
checkpointing. Attention is torch's sdpa, and flex attention in torchtitan, which no longer takes another, and in
torchtune where rows are packed (on a CPU sdpa with a mask). Documents of packed rows do not see each other, padding
being one more: Axolotl and Unsloth are told of them as their own packing has it, and on a GPU take torch's kernel for
sequences of many lengths in place of sdpa, or sdpa by the document; Unsloth takes no loss then at the last token of
each, and with LoRA does not compile its layers. torchtitan is not given packed rows. It reads its loss each tenth step,
its default, the others each step. Axolotl and Unsloth compute under autocast with float32 adapters, their default.
Unsloth trains under transformers' Trainer, and compiles its layers, its default, with --compile or not; on a CPU it
asks for UNSLOTH_FORCE_CPU=1 and takes other code.
With --tolls, steps after the warm-up take turns in blocks, plain and tolled, as those of a run with cc=emulated do. The
last line of stdout is one JSON object with the times of the steps after the warm-up, by mode.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

from rows import read_rows
from steps import MODES, Steps

from cctrain.emulation.blocks import fewest_steps, schedule
from cctrain.emulation.injector import attached
from cctrain.emulation.profile import load_profile
from cctrain.emulation.switch import TollSwitch
from cctrain.timing.device import clock
from cctrain.timing.timer import StepTimer

LIBRARIES = ("torchtitan", "torchtune", "axolotl", "unsloth")
"""Each trains by a file of its own, `with_NAME.py`."""
PACKED = ("torchtune", "axolotl", "unsloth")
"""Those that are given packed rows."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1"}
MODELS = Path(__file__).resolve().parents[2] / "recipes" / "models"


def parse() -> tuple[argparse.Namespace, TollSwitch | None]:
    """The command line, and what puts each step under its tolls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=LIBRARIES)
    parser.add_argument("--task", choices=("lora", "sft"), default="lora", help="adapters, or all weights")
    parser.add_argument("--rows", type=Path, required=True, help="of peers_rows.py")
    parser.add_argument("--size", choices=("8b", "tiny"), default="8b", help="of the Llama")
    parser.add_argument("--steps", type=int, default=96, help="to be measured")
    parser.add_argument("--warmup", type=int, default=15, help="steps before these")
    parser.add_argument("--compile", action="store_true", help="torch.compile, as the library has it")
    parser.add_argument("--tolls", metavar="NAME|FILE", help="a profile; only under python -m cctrain emulate")
    parser.add_argument("--blocks", type=int, default=4, help="with --tolls: pairs of blocks")
    parser.add_argument("--hold", type=int, metavar="STEPS", help="stop by SIGSTOP after so many, until a SIGCONT")
    parser.set_defaults(models=MODELS)
    options = parser.parse_args()
    switch = None
    if options.tolls:
        tolls = attached()
        if tolls is None:
            parser.error(f"--tolls {options.tolls}: only in a process that python -m cctrain emulate has started")
        fewest = fewest_steps(len(MODES), options.blocks)
        if options.steps < fewest:
            parser.error(f"--steps {options.steps}: allowed is {fewest} or more with --blocks {options.blocks}")
        slots = schedule(options.steps, tuple(MODES), options.blocks)
        switch = TollSwitch(tolls, load_profile(options.tolls), slots, options.warmup)
    if not options.rows.is_file():
        parser.error(f"--rows {options.rows}: no such file; peers_rows.py writes one")
    path, options.rows = options.rows, read_rows(options.rows, options.warmup + options.steps)
    options.micro_batch, options.seq_len = options.rows[0].ids.shape
    options.is_packed = any((rows.seq_lens > 0).sum(1).max() > 1 for rows in options.rows)
    if options.is_packed and options.name not in PACKED:
        parser.error(f"--rows {path}: its rows are packed; allowed with {', '.join(PACKED)}")
    return options, switch


def main() -> None:
    """Train, read the stamps, print."""
    options, switch = parse()
    os.environ |= OFFLINE
    steps = Steps(StepTimer(clock()), options.steps, options.warmup, switch, hold=options.hold)
    options.folder = Path(tempfile.mkdtemp())

    def end(code: int) -> None:
        """With what there is."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tokens = options.micro_batch * options.seq_len
        modes = {
            mode: {"step_times_s": seconds, "tokens_per_step": tokens} for mode, seconds in steps.times_s().items()
        }
        print(json.dumps({"timed": modes}), flush=True)
        shutil.rmtree(options.folder, ignore_errors=True)  # Axolotl's model is in it
        os._exit(code)

    # Its deadline. Where a signal comes the timer may be reading, so that its times are asked for after that.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        importlib.import_module(f"with_{options.name}").train(options, steps)
    except KeyboardInterrupt:
        end(1)
    except Exception as error:
        # Said on stdout as well, as a progress bar may have the last word on stderr.
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        shutil.rmtree(options.folder, ignore_errors=True)
        raise
    end(0)


if __name__ == "__main__":
    main()
