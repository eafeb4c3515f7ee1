"""What `explain` leaves unexplained, by another method: every measured step, noise correlated in time.

    python docs/evidence/emulated/correlated_noise.py docs/evidence/emulated/explain_b300*.json

Steps are their arm's mean and noise: white, and two parts that fade exponentially with the steps between. Its variances
and spans are fitted by restricted likelihood, the means by generalized least squares; the costs of the classes are the
sum of effects nearest to the means, as in cctrain/emulation/explain.py. A step farther than 120 ms from its arm's
median counts as that far. `blocks` is how far the means of blocks scatter beside those of their arm and round, `left
behind` what 100 ms injected into each step of the block before add to a step.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from cctrain.emulation.arms import only, paid, without
from cctrain.emulation.blocks import ALL, OFF

FARTHEST_MS = 120.0
# Variances in ms^2 of the white, the short and the long part, and the spans of the latter two in steps.
START = np.log([500.0, 1200.0, 400.0, 3.0, 30.0])


def fitted(design, times, steps):
    """The means, their covariance, and the noise's parameters."""
    apart = np.abs(steps[:, None] - steps)

    def solve(logs):
        white, short, long, short_span, long_span = np.exp(logs)
        noise = white * np.eye(len(times)) + short * np.exp(-apart / short_span) + long * np.exp(-apart / long_span)
        factor = cho_factor(noise, lower=True)
        covariance = np.linalg.inv(design.T @ cho_solve(factor, design))
        return factor, covariance, covariance @ (design.T @ cho_solve(factor, times))

    def unlikelihood(logs):
        factor, covariance, means = solve(logs)
        rest = times - design @ means
        of_noise = np.log(np.diag(factor[0])).sum() + rest @ cho_solve(factor, rest) / 2
        return of_noise - np.linalg.slogdet(covariance)[1] / 2

    options = {"maxiter": 250, "xatol": 0.05, "fatol": 0.1}
    logs = minimize(unlikelihood, START, method="Nelder-Mead", options=options).x
    _, covariance, means = solve(logs)
    return means, covariance, np.exp(logs)


def said(contrast, means, covariance):
    """The contrast, its standard error, and both in words."""
    value, error = float(contrast @ means), float(np.sqrt(contrast @ covariance @ contrast))
    return value, error, f"{value:.1f} +- {1.96 * error:.1f} ms"


pooled = []
for name in sys.argv[1:]:
    record = json.loads(Path(name).read_text())
    classes = [each["name"] for each in record["explain"]["classes"]]
    injected_ms = {each["name"]: 1e3 * each["injected_s"] for each in record["explain"]["classes"]}
    arms = [OFF, ALL, *map(only, classes), *map(without, classes)]
    arm_of = {step["block"]: step["arm"] for step in record["steps"] if step["arm"]}
    measured = [step for step in record["steps"] if step["arm"] and not step["is_warmup"]]
    times = 1e3 * np.array([step["step_time_s"] for step in measured])
    of_arm = np.array([[float(step["arm"] == arm) for arm in arms] for step in measured])
    medians = of_arm @ [np.median(times[column > 0]) for column in of_arm.T]
    times = medians + np.clip(times - medians, -FARTHEST_MS, FARTHEST_MS)
    steps = np.array([float(step["step"]) for step in measured])

    means, covariance, noise = fitted(of_arm, times, steps)
    effects = np.linalg.pinv([[1.0, *(float(each in paid(arm, classes)) for each in classes)] for arm in arms])
    total = np.array([float(arm == ALL) - float(arm == OFF) for arm in arms])
    rest, error, words = said(total - effects[1:].sum(axis=0), means, covariance)
    pooled.append((rest, error))
    blocks = np.array([step["block"] for step in measured])
    num_rounds = len(set(blocks)) // len(arms)
    table = [
        [times[(blocks // len(arms) == number) & (column > 0)].mean() for column in of_arm.T]
        for number in range(num_rounds)
    ]
    off = table - np.mean(table, axis=0) - np.mean(table, axis=1)[:, None] + np.mean(table)
    scatter = np.sqrt((off**2).sum() / (num_rounds - 1) / (len(arms) - 1))
    before = [arm_of.get(step["block"] - 1, OFF) for step in measured]
    left = np.array([sum(injected_ms[each] for each in paid(arm, classes)) / 100 for arm in before])
    behind = said(np.eye(len(arms) + 1)[-1], *fitted(np.c_[of_arm, left], times, steps)[:2])[2]
    spans = f"{noise[3]:.1f} and {noise[4]:.0f} steps"
    print(f"{name}: all {said(total, means, covariance)[2]}, unexplained {words}")
    print(f"    noise over {spans}, blocks {scatter:.0f} ms, left behind {behind}")
    costs = (f"{each} {said(row, means, covariance)[2]}" for each, row in zip(classes, effects[1:], strict=True))
    print(f"    {', '.join(costs)}")
weights = np.array([error**-2 for _, error in pooled])
mean = np.average([rest for rest, _ in pooled], weights=weights)
print(f"unexplained, weighted: {mean:.1f} +- {1.96 / np.sqrt(weights.sum()):.1f} ms")
