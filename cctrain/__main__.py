"""`python -m cctrain [VERB] key=value ...`; without a verb, train."""

from __future__ import annotations

import json
import sys

from cctrain.errors import CctrainError

HELP = """\
usage: python -m cctrain [train] recipe=NAME|FILE [key=value ...]

Fine-tune with NVIDIA NeMo AutoModel, time every step, and record what confidential computing (CC) costs.

  python -m cctrain recipe=tiny_llama_peft                   a tiny LoRA run on this CPU, a minute
  python -m cctrain recipe=llama70b_peft cc=on               Llama 3.3 70B LoRA on a confidential machine
  python -m cctrain recipe=llama8b_peft weights=random data=synthetic data.seq_len=256    no download
  python -m cctrain recipe=my_recipe.yaml                    your own AutoModel recipe, timed
  python -m cctrain recipe=llama70b_peft dry_run=true        show what would run

settings
  recipe=           llama70b_peft  llama70b_sft  llama8b_peft  llama8b_sft  gemma31b_peft  gemma31b_sft
                    tiny_llama_peft  tiny_llama_sft  tiny_gemma_peft  tiny_gemma_sft  or a file
  cc=               auto (take what is seen)  on, off (stop where it is not so)  unverified
  weights=          recipe  random (no download)  pretrained, with weights.path=DIRECTORY|HUB_ID
  data=             recipe  pydoc (Python's own documentation, no download)  squad  medpix
                    jsonl, with data.path=FILE data.question=COLUMN data.answer=COLUMN [data.image=COLUMN]
                    synthetic, with data.lengths=fixed|squad
  data.seq_len=     tokens a sample
  measure.warmup=   steps set aside            measure.steps=   steps measured
  launch.nproc_per_node=   ranks, one a GPU
  train.KEY=        any key of the AutoModel recipe; +train.KEY= adds one, ~train.KEY drops one
  run_root=         where run directories go (runs/)
  dry_run=true      print the torchrun command and the recipe, start nothing
  Every key with its meaning: cctrain/config.py

output  a table, and as the last line one JSON object; run.json in the run directory holds the rest
exit    0 done   2 the request is wrong   3 the machine is not as asked for   4 the run failed, its record is partial
"""

VERBS = ("train",)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb. Returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(HELP)
        return 0 if arguments else 2
    try:
        return _run(arguments)
    except CctrainError as error:
        print(f"cctrain: {error}", file=sys.stderr)
        if error.exit_code < 4:  # a failed run has printed its line
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        return error.exit_code
    except KeyboardInterrupt:
        print("cctrain: stopped before anything was started", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    verb = arguments[0] if "=" not in arguments[0] and not arguments[0].startswith(("-", "~")) else None
    if verb not in (*VERBS, None):
        from cctrain.errors import RequestError
        from cctrain.request.nearest import did_you_mean

        raise RequestError(
            f"unknown verb {verb}: allowed is {', '.join(VERBS)}.{did_you_mean(str(verb), VERBS)} Settings: key=value"
        )
    from cctrain.commands import train

    return train.run(arguments[1:] if verb else arguments)


if __name__ == "__main__":
    sys.exit(main())
