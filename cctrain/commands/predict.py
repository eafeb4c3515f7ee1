"""The verb predict: what confidential computing (CC) would cost a run that was made without it. A what-if, no run.

    python -m cctrain predict runs/RUN --tolls b300                 a run with measure.crossings=true or cc=emulated
    python -m cctrain predict runs/RUN --tolls mine.json            the tolls of `tolls --diff`
    python -m cctrain predict runs/RUN --tolls b300 --base-step-time-s 1.087     on a machine that is faster or slower
    python -m cctrain predict runs/RUN --tolls b300 --followed-by runs/ON        how far off it was

A table, and as the last line of stdout one JSON object. What was lost in runs that followed, with CC on or emulated
under the same tolls, stands beside the prediction; where none is named, and the run itself was emulated under them, its
own loss. How it is computed: cctrain/predict.py. Exit code 2: nothing to predict from.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from cctrain.commands.flags import Parser
from cctrain.emulation.profile import ASSUMED, NOT_EMULATED, load_profile
from cctrain.errors import RequestError
from cctrain.predict import lost, predict, read_base
from cctrain.records import finite

_LONGEST_S = 1e6


def run(arguments: list[str]) -> int:
    """Predict as `arguments` say. Returns 0; raises RequestError."""
    parser = Parser("predict", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory, or its run.json")
    parser.add_argument("--tolls", required=True, metavar="NAME|FILE", help="b300, hopper, h100 or a file")
    parser.add_argument("--base-step-time-s", type=float, metavar="S", help="step time of a CC-off run elsewhere")
    parser.add_argument(
        "--followed-by",
        nargs="+",
        default=[],
        metavar="RUN",
        type=Path,
        help="runs of the same with CC on, or emulated",
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="FIELD", help="let those differ in it; may be repeated"
    )
    flags = parser.parse_args(arguments)
    base_step_time_s = flags.base_step_time_s
    if base_step_time_s is not None and not 0 < base_step_time_s <= _LONGEST_S:
        raise RequestError(f"--base-step-time-s {base_step_time_s}: allowed is more than 0 seconds, to {_LONGEST_S:g}")
    profile = load_profile(flags.tolls)
    base = read_base(flags.run)
    prediction = predict(base, profile, base_step_time_s)
    if prediction.parts and not any(part.extra_s for part in prediction.parts):
        raise RequestError(
            f"--tolls {flags.tolls}: its profile knows no toll of what this run crosses, so there is nothing to "
            f"predict from; it would take {', '.join(part.toll for part in prediction.parts)}"
        )
    measured_by = "this run, emulated"
    if flags.followed_by:
        from cctrain.comparison.followed import outcome_of

        found = outcome_of(
            flags.followed_by, flags.run, profile.sha256, allow=flags.allow, base_step_time_s=base_step_time_s
        )
        prediction = dataclasses.replace(prediction, measured=lost(found.keep_ratio, found.ci95))
        mode = "CC on" if found.mode == "on" else "emulated"
        measured_by = f"{found.num_runs} run{'s' * (found.num_runs > 1)} that followed, {mode}"
        measured_by += f", --allow {', '.join(flags.allow)}" * bool(flags.allow)
    elif flags.allow:
        raise RequestError("--allow: it is for what --followed-by names, which is not there")
    from cctrain.report.prediction import print_prediction

    print_prediction(base, profile, prediction, measured_by)
    facts = {
        "mode": "predicted",
        "run": str(flags.run),
        "tolls": {"name": profile.name, "sha256": profile.sha256},
        "loss": dataclasses.asdict(prediction.loss),
        "step_time_s": dataclasses.asdict(prediction.step_time_s),
        "off_by": prediction.off_by,
        "measured_by": measured_by if prediction.measured else None,
        **dataclasses.asdict(prediction),
        "counted_by": base.counted_by,
        "is_steady": base.is_steady,
        "assumed": ASSUMED,
        "not_emulated": NOT_EMULATED,
        "exit_code": 0,
    }
    print(json.dumps(finite(facts), allow_nan=False))
    return 0
