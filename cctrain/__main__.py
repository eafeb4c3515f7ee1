"""`python -m cctrain [VERB] key=value ...`; without a verb, train."""

from __future__ import annotations

import importlib
import json
import os
import sys

from cctrain import __version__
from cctrain.errors import CctrainError, RequestError, RunError
from cctrain.packaged import CONF

HELP = """\
usage: python -m cctrain [train] recipe=NAME|FILE [key=value ...]
       python -m cctrain VERB [--flags]

Fine-tune with NVIDIA NeMo AutoModel, time every step, and record what confidential computing (CC) costs.

  python -m cctrain recipe=tiny_llama_peft                   a tiny LoRA run on this CPU, a minute
  python -m cctrain recipe=llama70b_peft cc=on               Llama 3.3 70B LoRA on a confidential machine
  python -m cctrain recipe=llama8b_peft weights=random data=synthetic data.seq_len=256    no download
  python -m cctrain recipe=my_recipe.yaml                    your own AutoModel recipe, timed
  python -m cctrain recipe=llama8b_peft cc=emulated tolls=b300    what CC would cost it, on a GPU without CC
  python -m cctrain recipe=llama70b_peft dry_run=true        show what would run

  python -m cctrain doctor                                   what this machine is, what fits it, what CC makes slow
  python -m cctrain tolls --out off.json                     what launches, copies, waits... cost on this machine
  python -m cctrain tolls --diff off.json on.json            what CC adds to each, and a profile of it
  python -m cctrain explain recipe=llama8b_peft tolls=b300   what each class of tolls costs it, with intervals
  python -m cctrain emulate --tolls b300 -- COMMAND ...      any CUDA program under a profile's tolls
  python -m cctrain predict runs/RUN --tolls b300            what CC would cost a run, from its crossings
  python -m cctrain compare runs --html report.html          what CC cost, with an interval and a verdict
  python -m cctrain compare runs --by step                   what step=graphed gets back; --by engine: whether it is CC
  python -m cctrain campaign recipe=llama8b_peft,llama8b_sft cc=off,on    all of these by turns, over reboots and kills
  python -m cctrain tune recipe=llama8b_peft cc=emulated tolls=b300    the fastest batch, layout and step, in 8 trials
  python -m cctrain dashboard --project P                    a W&B workspace and Report over a project's runs

settings
  recipe=           llama70b_peft  llama70b_sft  llama8b_peft  llama8b_sft  gemma31b_peft  gemma31b_sft
                    llama1b_peft  tiny_llama_peft  tiny_llama_sft  tiny_gemma_peft  tiny_gemma_sft  or a file
  cc=               auto (take what is seen)  on, off (stop where it is not so)  unverified
                    emulated: no CC, but its tolls injected, in blocks of steps that alternate with plain ones
  tolls=            cc=emulated: b300  hopper  h100  or a file, as of `tolls --diff`    cc.blocks=   pairs of blocks
  step=             stock (AutoModel's own)  graphed: the same recorded into CUDA graphs, refused where it cannot be
                    auto: graphed where it can be, else stock    step.compile=false   graphed: layers as they are
  engine=           automodel  hf (the same recipe by transformers' Trainer, PEFT and Accelerate)
  weights=          recipe  random (no download)  pretrained, with weights.path=DIRECTORY|HUB_ID
  data=             recipe  pydoc (Python's own documentation, no download)  squad  medpix
                    jsonl, with data.path=FILE data.question=COLUMN data.answer=COLUMN [data.image=COLUMN]
                    synthetic, with data.lengths=fixed|squad
  data.seq_len=     tokens a sample
  measure=          steady  seed (what AutoModel itself prints, as the published post took it, beside ours)
  measure.warmup=   steps set aside            measure.steps=   steps measured; or auto, until the interval is
                    within measure.half_width= (0.0025 of the mean), at most measure.max_steps= (1000)
  measure.crossings=true   count launches, copies, waits... for `predict`; cc=emulated does anyway
  launch.nproc_per_node=   ranks on each machine, one a GPU
  launch=           torchrun: here; with launch.num_nodes=N launch.rdzv_endpoint=HOST:PORT start the same command on
                    each of N machines that share run_root, HOST being one of them
                    slurm  kubernetes (launch.image=)  nemo_run (launch.executor=): submit, see launch/
  train.KEY=        any key of the AutoModel recipe; +train.KEY= adds one, ~train.KEY drops one
  track=            wandb (live with a login, else offline in the run directory)  trackio (no account)  both  none
                    track.project= (cctrain)  track.group= (runs alike in all but the mode)
  tune.KEY=         the verb tune: what it may change and within which limits, see `tune --help`
  run_root=         where run directories go (runs/)
  dry_run=true      print the torchrun command and the recipe, start nothing
  Every key with its meaning: cctrain/config.py

output  a table, and as the last line one JSON object; run.json in the run directory holds the rest
exit    0 done   2 the request is wrong   3 the machine is not as asked for   4 the run failed, its record is partial
        1 compare --min-keep: less is kept   130 stopped before anything was started
"""

VERBS = ("train", "compare", "explain", "predict", "emulate", "tolls", "tune", "campaign", "dashboard", "doctor")


def main(arguments: list[str] | None = None) -> int:
    """Run one verb. Returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = _answered(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _answered(arguments: list[str]) -> int:
    """Run, with every error that is the user's to mend in one line on stderr and one JSON line on stdout."""
    has_own_help = arguments and arguments[0] in VERBS and arguments[0] != "train"
    if not arguments or (not has_own_help and {"-h", "--help", "help"} & set(arguments)):
        print(HELP)
        return 0 if arguments else 2
    if arguments == ["--version"]:
        print(__version__)
        return 0
    try:
        return _run(arguments)
    except CctrainError as error:
        return _refuse(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        way_out = "`make demo` makes an environment; then: source .venv/bin/activate"
        return _refuse(f"{error.name} is not installed in {sys.executable}: {way_out}", RequestError.exit_code)
    except KeyboardInterrupt:
        return _refuse("stopped before anything was started", 130)


def _refuse(message: str, code: int) -> int:
    print(f"cctrain: {message}", file=sys.stderr)
    if code != RunError.exit_code:  # a failed run has printed its line
        print(json.dumps({"error": message, "exit_code": code}))
    return code


def _run(arguments: list[str]) -> int:
    verb = arguments[0] if "=" not in arguments[0] and not arguments[0].startswith(("-", "~")) else None
    if verb not in (*VERBS, None):
        from cctrain.nearest import did_you_mean

        meant = did_you_mean(str(verb), VERBS)
        if (CONF / "recipe" / f"{verb}.yaml").is_file():
            meant = f" Did you mean recipe={verb}?"
        raise RequestError(f"unknown verb {verb}: allowed is {', '.join(VERBS)}.{meant} Settings: key=value, no spaces")
    from cctrain.processes import stops_held

    with stops_held():
        command = importlib.import_module(f"cctrain.commands.{verb or 'train'}")
    return int(command.run(arguments[1:] if verb else arguments))


if __name__ == "__main__":
    sys.exit(main())
