"""A comparison in words, the same on the terminal, in Markdown and in HTML. Losses are percent in print only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

from cctrain.comparison.compare import Answer, Comparison
from cctrain.comparison.groups import setting_of
from cctrain.emulation.profile import emulated_note, why_faster
from cctrain.ratios import CHANCE

SEED_POST = '"How does NVIDIA Confidential Computing impact inference and training performance?", Tinfoil, 2026'
SEED_LOSSES = {
    "gemma31b_peft": ("8 x H200", 0.323),
    "gemma31b_sft": ("8 x H200", 0.180),
    "llama70b_peft": ("8 x B300", 0.297),
    "llama70b_sft": ("8 x B300", 0.210),
}
"""Share of throughput lost in the training rows of the seed post, by recipe: one run a mode, so without intervals."""
_IN_FACTS = re.compile(r"train\.(step_scheduler|dist_env|packed_sequence|model\.config|distributed\.\w+_size)\b")
"""Changes of the recipe that a run's model, layout, sequence and batch show, or that cost no time."""


def percent(share: float, digits: int = 1) -> str:
    """0.297 as 29.7 %."""
    return f"{share * 100:.{digits}f} %"


def seed_of(one: Comparison) -> tuple[str, float] | None:
    """On what the seed post ran this recipe, and what it lost: beside what CC costs a stock step of the whole model,
    which it had only."""
    run = one.other_arms[0].run
    is_whole = "num_hidden_layers" not in str(run.identity.get("model"))
    return SEED_LOSSES.get(one.recipe) if one.is_of_cc and run.step_kind == "stock" and is_whole else None


def beside_seed(one: Comparison) -> str:
    """How an emulated loss stands to the seed post's of this recipe, and what is different here: missed, unless the
    interval holds it; with none, how far from it. Profiles are never tuned towards it. Empty for other comparisons."""
    seed = seed_of(one)
    if not seed or not one.is_emulated:
        return ""
    hardware, lost = seed
    distance = f"{(1 - one.keep_ratio - lost) * 100:+.1f} points"
    if one.ci95 is None:
        found = f"is {distance} from the seed post's {percent(lost)}, which takes several runs to hold or to miss"
    elif one.ci95[0] <= 1 - lost <= one.ci95[1]:
        found = f"holds the seed post's {percent(lost)} within its interval"
    else:
        found = f"misses the seed post's {percent(lost)} by {distance}"
    return f"{found}; that is of {hardware} with AutoModel's own settings, this of {_setting(one)}"


def _setting(one: Comparison) -> str:
    """On what an emulated run ran, as far as its record says."""
    run = one.other_arms[0].run
    gpus = " and ".join(dict.fromkeys(map(str, run.identity.get("gpu") or ["unnamed GPU"])))
    facts = [setting_of(run, name) for name in ("model", "layout", "sequence", "batch")]
    changed = [word.lstrip("+") for word in run.command if word.lstrip("+").startswith("train.")]
    rest = [word for word in changed if not _IN_FACTS.match(word)]
    return ", ".join([f"{run.num_gpus} x {gpus} under {run.profile}", *facts, *rest])


def what(one: Comparison) -> str:
    """What is held against what."""
    base = {"off": "CC off", "on": "CC on"}.get(one.base, one.base)
    other = {"off": "CC off", "on": "CC on", "unknown": "unknown mode"}.get(one.other, one.other)
    return f"{other} / {'own plain steps' if one.pairing == 'same run' else base}"


def title(one: Comparison) -> str:
    """The recipe with its setting."""
    return f"{one.recipe}, {one.setting}" if one.setting else one.recipe


def first_line(answer: Answer) -> str:
    """What was found, of several comparisons the worst."""
    worst, num = answer.worst, len(answer.comparisons)
    return f"{title(worst)}: {headline(worst)}" + (f", the worst of {num}" if num > 1 else "")


def headline(one: Comparison) -> str:
    """The verdict in some words."""
    subject = _subject(one)
    if not one.is_of_cc:
        size = f"{one.keep_ratio:.2f} times the throughput"
        return {"unclear": f"Unclear, {size}", "free": "No difference"}.get(one.verdict, size.capitalize())
    size = percent(abs(1 - one.keep_ratio))
    return {
        "costs": f"{subject} costs {size} of throughput",
        "gains": f"{subject} gains {size} of throughput" + ", not by its tolls" * one.is_emulated,
        "free": f"{subject} is free",
        "unclear": f"{subject}: unclear, {size} {'lost' if one.keep_ratio < 1 else 'gained'}",
    }[one.verdict]


def _subject(one: Comparison) -> str:
    if one.mode == "emulated":
        return f"Emulated CC ({one.other.removeprefix('emulated ')})"
    return "CC" if one.mode == "on" else "The unknown mode"


def figures(one: Comparison) -> tuple[str, str]:
    """The result as a number, and its interval: of the loss in percent, or of the ratio of two settings."""
    interval = one.ci95 or one.within_run_ci95
    basis = "" if one.ci95 else ", from the noise within the runs alone"
    if not one.is_of_cc:
        return (
            f"{one.keep_ratio:.2f} x",
            f"{interval[0]:.2f} to {interval[1]:.2f}{basis}" if interval else "no interval",
        )
    kind = "lost" if one.keep_ratio < 1 else "gained"
    sign = 1 if one.keep_ratio < 1 else -1
    ends = sorted(sign * (1 - end) * 100 for end in interval) if interval else []
    shown = f"{ends[0]:.1f} to {ends[1]:.1f} %{basis}" if ends else "no interval"
    return f"{percent(abs(1 - one.keep_ratio))} {kind}", shown


def sentence(one: Comparison, margin: float) -> str:
    """What was found, with its interval and what it rests on."""
    kept = f"{one.keep_ratio:.3f} of the throughput is kept"
    if not one.is_of_cc:
        kept = (
            f"{one.other} has {one.keep_ratio:.3f} times the throughput of {'CC on' if one.base == 'on' else one.base}"
        )
    if one.ci95 is None:
        is_one = max(len(one.base_arms), len(one.other_arms)) == 1
        few = f"{replicates(one, is_plain=True)} {'gives' if is_one else 'give'} no 95 % interval"
        return f"{kept}, but {few}: it takes two of each at least."
    low, high = one.ci95
    found = f"{kept}, with 95 % confidence {low:.3f} to {high:.3f}, from {replicates(one)}."
    if one.verdict == "free":
        return f"{found} That is within the margin of {percent(margin, 1 if margin < 0.1 else 0)}."
    if one.verdict == "unclear":
        return f"{found} That neither excludes 1 nor lies within the margin of {percent(margin)}."
    return found


def replicates(one: Comparison, *, is_plain: bool = False) -> str:
    """The runs, and, unless `is_plain`, how they were paired."""
    num_base, num_other = len(one.base_arms), len(one.other_arms)
    if one.pairing == "same run":
        runs = f"{num_other} emulated run{'s, each' * (num_other > 1)} against its own plain steps"
        is_wider = one.error_in_common and not is_plain
        return f"{runs}, and from the scatter of their blocks, as samples differ in length" if is_wider else runs
    if one.pairing == "interleaved" and not is_plain:
        return f"{num_base} pair{'s' * (num_base > 1)} of interleaved runs"
    runs = f"{num_other} run{'s' * (num_other > 1)} against {num_base}"
    return runs if is_plain else f"{runs}, not interleaved and so not paired"


def within_run(one: Comparison) -> str | None:
    """The interval that does not know how runs differ, labelled as such; None where there is a real one."""
    if one.within_run_ci95 is None:
        return None
    low, high = one.within_run_ci95
    return f"From the noise within the runs alone it would be {low:.3f} to {high:.3f}; runs differ by more than that."


def note(comparisons: Sequence[Comparison]) -> str | None:
    """What is to be said wherever something is emulated; None where nothing is."""
    runs = [arm.run for one in comparisons if one.is_emulated for arm in one.other_arms]
    return emulated_note(is_cpu=all(run.identity.get("gpu") == ["cpu"] for run in runs)) if runs else None


def more_runs(one: Comparison) -> str | None:
    """How many runs would settle it; None where it is settled."""
    if one.more is None:
        return None
    spread = f"vary by {percent(one.more.spread, 2)} (one standard deviation) from one to the next"
    basis = f"if runs {spread}, which is assumed" if one.more.is_assumed else f"as these runs {spread}"
    if one.more.num is None:
        return f"More than 100 further runs of each would be needed, {basis}: the ratio lies where no verdict is near."
    kind = "emulated run" if one.pairing == "same run" else "run of each"
    plural = kind.replace("run", "runs", 1) if one.more.num > 1 else kind
    return f"{one.more.num} more {plural} would settle it with a chance of {percent(CHANCE, 0)}, {basis}."


def slow_steps(one: Comparison, margin: float) -> str | None:
    """Where means and medians disagree; None where they do not, or slow steps count: of a run against itself."""
    if one.pairing == "same run" or abs(one.keep_ratio_of_means / one.keep_ratio - 1) <= margin:
        return None
    ratio = f"{one.keep_ratio_of_means:.3f} {'is kept' if one.is_of_cc else 'times'}"
    return f"By total tokens over total time {ratio}: that counts slow steps, which a run's median leaves out."


def added(one: Comparison) -> str | None:
    """What tolls add to a step; None where there are none, or nothing is lost."""
    if not one.added_s or one.keep_ratio >= 1 or fmean(one.added_s) <= 0:
        return None
    low, middle, high = (f"{1e3 * each:,.1f}" for each in (min(one.added_s), fmean(one.added_s), max(one.added_s)))
    return f"The tolls add {middle} ms to a step{f' ({low} to {high} by run)' * (len(one.added_s) > 1)}."


def faster_under_tolls(one: Comparison) -> str | None:
    """What an emulated gain is; None where there is none."""
    if not (one.is_emulated and one.is_of_cc and one.keep_ratio > 1) or one.verdict == "free":
        return None
    return f"Tolls make nothing faster: what is above 1 is {why_faster(one.ci95 or one.within_run_ci95)}."


def remarks(one: Comparison, margin: float) -> list[str]:
    """All that is to be said beside the sentence."""
    found = (within_run(one), added(one), faster_under_tolls(one), more_runs(one), slow_steps(one, margin))
    return [text for text in found if text]


def allowed(answer: Answer) -> list[str]:
    """What spoke against comparing and was taken all the same."""
    return [f"--allow {one.field}: {one.why}" for one in answer.objections]


def gate(answer: Answer, min_keep: float) -> tuple[bool, list[str]]:
    """Whether every ratio is at least `min_keep`, and what to say of those that are not, or whose interval holds it:
    of what CC costs, where there is any, and not of steps or engines."""
    asked = [one for one in answer.comparisons if one.is_of_cc] or answer.comparisons
    below = [one for one in asked if one.keep_ratio < min_keep]
    texts = [f"{title(one)}, {what(one)}: {one.keep_ratio:.3f} is below --min-keep {min_keep:g}" for one in below]
    for one in asked:
        if one.ci95 is None:
            texts.append(
                f"{title(one)}, {what(one)}: no interval, so that --min-keep {min_keep:g} may be missed by chance"
            )
        elif one.ci95[0] < min_keep <= one.ci95[1]:
            low, high = one.ci95
            texts.append(
                f"{title(one)}, {what(one)}: the 95 % interval {low:.3f} to {high:.3f} holds --min-keep {min_keep:g}"
            )
    return not below, texts
