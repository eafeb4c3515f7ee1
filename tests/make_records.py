"""Records of runs that never were, for tests and benchmarks of what reads them: AR(1) steps around a known step time.

python tests/make_records.py DIRECTORY    a campaign to look at: off and on interleaved, two profiles emulated, lengths
"""

from __future__ import annotations

import dataclasses
import sys
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from cctrain.records import RunRecord, StepRecord, to_json

START = datetime(2026, 11, 20, 8, tzinfo=UTC)
PHASES = {"data_wait": 0.01, "forward": 0.36, "backward": 0.52, "optimizer": 0.08, "other": 0.03}


def identity(num_gpus=1, seq_len=256, **changes):
    facts = {
        "recipe_hash": f"5f1d{seq_len:x}",
        "model": "models/llama-3.1-8b",
        "layout": {"world": num_gpus, "data": num_gpus, "tensor": 1, "pipeline": 1, "context": 1},
        "batch": {"global_batch_size": 4 * num_gpus, "local_batch_size": 4},
        "sequence": {"data": "synthetic", "seq_len": seq_len, "lengths": "fixed", "packed": 0},
        "precision": "bf16",
        "versions": {"torch": "2.13.0", "nemo-automodel": "0.7.0", "transformers": "5.18.0"},
        "gpu": ["NVIDIA H200"],
        "num_gpus": num_gpus,
    }
    return {**facts, **changes}


def platform(mode):
    is_on = mode == "on"
    return {
        "gpus": {"names": ["NVIDIA H200"], "driver": "580.159", "cc": {"cc_feature": int(is_on), "devtools": 0}},
        "guest": {"kind": "tdx" if is_on else "none"},
        "host": {"cpu": "Intel Xeon 8592+", "num_cores": 32, "kernel": "6.8.0"},
        "swiotlb": {"size_bytes": 1 << 30 if is_on else 64 << 20},
        "versions": {"driver": "580.159", "nccl": "2.28.9", "torch": "2.13.0"},
    }


def noise(rng, num, spread, phi=0.2):
    values = rng.normal(size=num)
    for index in range(1, num):
        values[index] += phi * values[index - 1]
    return np.exp(spread * np.sqrt(1 - phi**2) * values)


def step_records(times, num_gpus=1, seq_len=256, warmup=5, tolled=None, blocks=None, phase_cost=0.0, base=None):
    """`tolled` and `blocks` of each step for an emulated run. Of a step's time above `base`, the forward pass takes
    `phase_cost`."""
    base = times if base is None else base
    records = []
    for index, (time, plain) in enumerate(zip(times, base, strict=True)):
        phases = {name: share * plain for name, share in PHASES.items()}
        phases["forward"] += phase_cost * (time - plain)
        phases["backward"] += (1 - phase_cost) * (time - plain)
        tokens = 4 * seq_len * num_gpus
        records.append(
            StepRecord(
                step=index + 1,
                step_time_s=time,
                rank_step_time_s=tuple(time * (1 - 0.001 * rank) for rank in range(num_gpus)),
                rank_begin_s=tuple(1.8e9 + index for _ in range(num_gpus)),
                data_wait_s=phases["data_wait"],
                phases_s=phases,
                micro_batches_s={"forward": [phases["forward"]], "backward": [phases["backward"]]},
                padded_tokens=tokens,
                real_tokens=tokens,
                label_tokens=tokens - 16,
                num_images=0,
                model_flops=1.0e14,
                hardware_flops=1.1e14,
                engine_tokens=tokens,
                engine_tokens_per_s_per_gpu=5000.0,
                loss=12.5,
                is_warmup=index < warmup,
                is_tolled=None if tolled is None else tolled[index],
                arm=None if tolled is None else {True: "all", False: "off", None: "only launch"}[tolled[index]],
                block=None if blocks is None else blocks[index],
            )
        )
    return tuple(records)


def run_record(mode, number, *, recipe="llama8b_peft", num_steps=100, step_time_s=0.2, **rest):
    """The `number`th run of its kind, started `number` half hours into the campaign."""
    rng = np.random.default_rng([number, *map(ord, mode)])
    num_gpus, seq_len = rest.pop("num_gpus", 1), rest.pop("seq_len", 256)
    spread, between = rest.pop("spread", 0.004), rest.pop("between", 0.002)
    level = step_time_s * np.exp(between * rng.normal())
    times = level * noise(rng, num_steps + 5, spread)
    times[:5] *= np.linspace(3, 1.1, 5)
    cost = rest.pop("plain_share", 1.0)
    steps = rest.pop("steps", None) or step_records(
        times.tolist(), num_gpus, seq_len, phase_cost=0.4, base=(times * cost).tolist()
    )
    started = rest.pop("started_at", (START + timedelta(minutes=30 * number)).isoformat())
    facts = {
        "run_id": f"20261120-{number:06d}-{recipe}-{mode}",
        "engine": "automodel",
        "step_kind": "stock",
        "status": "complete",
        "failure": None,
        "identity": identity(num_gpus, seq_len),
        "platform": platform(mode),
        "command": ("python", "-m", "cctrain", f"recipe={recipe}", f"cc={mode}", f"data.seq_len={seq_len}"),
        "ended_at": None,
        "notes": (),
        "summary": None,
    }
    return RunRecord(recipe=recipe, mode=mode, started_at=started, steps=steps, **{**facts, **rest})


def emulated_record(number, *, profile="b300", keep=0.7, num_steps=120, step_time_s=0.2, block=12, **rest):
    """Blocks of plain and tolled steps by turns; the first two steps of a block are warm-up."""
    rng = np.random.default_rng([number, *map(ord, profile)])
    num_gpus, seq_len = rest.get("num_gpus", 1), rest.get("seq_len", 256)
    plain = step_time_s * np.exp(0.002 * rng.normal()) * noise(rng, num_steps + 5, 0.004)
    blocks = [None] * 5 + [index // block for index in range(num_steps)]
    tolled = [None] * 5 + [bool(index // block % 2) for index in range(num_steps)]
    times = np.where([bool(each) for each in tolled], plain / keep, plain)
    steps = list(
        step_records(times.tolist(), num_gpus, seq_len, 5, tolled, blocks, phase_cost=0.4, base=plain.tolist())
    )
    for index in range(5, len(steps)):
        if (index - 5) % block < 2:
            values = {name: getattr(steps[index], name) for name in StepRecord.__slots__}
            steps[index] = StepRecord(**{**values, "is_warmup": True})
    tolls = {"name": profile, "sha256": f"{zlib.crc32(profile.encode()):08x}", "content": profile_content(profile)}
    return run_record("emulated", number, steps=tuple(steps), tolls=tolls, explain=explained(keep), **rest)


def profile_content(name):
    launch, wait = (18.6, 22.0) if name == "b300" else (7.4, 9.0)
    source = "seed post, section 3"
    tolls = {
        "launch_us": {"value": launch, "interval": None, "source": source},
        "wait_us": {"value": wait, "interval": None, "source": source},
        "copy_h2d_pinned_us": {"value": [[4, 20.0], [268435456, 40000.0]], "interval": None, "source": source},
        "d2h_pinned_blocks": {"value": True, "interval": None, "source": source},
        "host_ratio": {"value": None, "interval": None, "source": "not known"},
    }
    return {"kind": "cctrain emulation profile", "schema_version": 1, "name": name, "notes": [], "tolls": tolls}


def explained(keep):
    total = 0.2 / keep - 0.2
    shares = {"launch": 0.86, "copy": 0.06, "wait": 0.05, "host": 0.01}
    classes = [
        {
            "name": name,
            "alone_s": total * share * 0.95,
            "left_out_s": total * share * 1.05,
            "cost_s": total * share,
            "ci95": [total * share * 0.9, total * share * 1.1] if name != "host" else None,
        }
        for name, share in shares.items()
    ]
    return {"classes": classes, "total_s": total, "unexplained_s": total * 0.02, "host_bound_share": 0.83}


def write(root, record):
    """As a run directory under `root`; returns its path."""
    folder = Path(root) / record.run_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(to_json(record), encoding="utf-8")
    return folder


def campaign(root, pairs=5):
    """Off and on interleaved, and two profiles emulated, of two recipes."""
    for number in range(pairs):
        write(root, run_record("off", 2 * number))
        write(root, run_record("on", 2 * number + 1, step_time_s=0.284, plain_share=0.704))
    for number in range(3):
        write(root, emulated_record(20 + number, profile="b300", keep=0.72))
        write(root, emulated_record(30 + number, profile="hopper", keep=0.88))
    for number in range(pairs):
        write(root, run_record("off", 2 * number, recipe="llama8b_sft", seq_len=1024, step_time_s=0.27))
        write(root, run_record("on", 2 * number + 1, recipe="llama8b_sft", seq_len=1024, step_time_s=0.2708))

    for seq_len, cost in ((512, 0.71), (1024, 0.83), (4096, 0.985)):
        step_time_s = 0.2 * (seq_len / 256) ** 0.6
        for number in range(3):
            run = {"recipe": "llama8b_peft", "seq_len": seq_len, "step_time_s": step_time_s}
            write(f"{root}/lengths", run_record("off", seq_len + 2 * number, **run))
            run["step_time_s"] /= cost
            write(f"{root}/lengths", run_record("on", seq_len + 2 * number + 1, plain_share=cost, **run))


def one_pair(root):
    """A recipe of the seed post, once each; the level changes for good in one, and torch's versions differ."""
    run = {"recipe": "llama70b_peft", "num_gpus": 2, "step_time_s": 1.1}
    write(root, run_record("off", 1, **run))
    shifted = list(run_record("on", 2, **{**run, "step_time_s": 1.5}).steps)
    for index in range(60, len(shifted)):
        times = {"step_time_s": shifted[index].step_time_s * 1.05}
        times["rank_step_time_s"] = tuple(time * 1.05 for time in shifted[index].rank_step_time_s)
        shifted[index] = dataclasses.replace(shifted[index], **times)
    facts = identity(2, versions={"torch": "2.14.0", "nemo-automodel": "0.7.0", "transformers": "5.18.0"})
    write(root, run_record("on", 2, **run, steps=tuple(shifted), identity=facts))


if __name__ == "__main__":
    campaign(f"{sys.argv[1]}/campaign")
    one_pair(f"{sys.argv[1]}/one_pair")
