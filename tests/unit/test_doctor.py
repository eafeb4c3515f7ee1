"""What doctor says of recipes: memory against measured peaks, what fits, what hurts, and the table."""

import functools
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cctrain.doctor.fit import Machine
from cctrain.doctor.hurts import hurts
from cctrain.doctor.judge import judge
from cctrain.doctor.memory import estimate
from cctrain.doctor.overrides import changed, overrides
from cctrain.doctor.table import print_findings
from cctrain.errors import RequestError
from cctrain.packaged import RECIPES
from cctrain.request.checks import Layout, layout_of
from cctrain.request.compose import compose_config

EVIDENCE = Path(__file__).parents[2] / "docs/evidence"
MEASURED = [*sorted(EVIDENCE.glob("main-job/*.json")), EVIDENCE / "emulated/llama70b_peft_one_gpu_b300.json"]
ONE_H200, TWO_H200, EIGHT_H200 = (Machine(number, 140.4) for number in (1, 2, 8))
NO_GPU = Machine(0, 0.0)


@functools.cache
def composed(*arguments):
    return compose_config(list(arguments))


def finding(machine, *arguments):
    return judge(composed(*arguments), machine)


def model_config(config):
    return json.loads((RECIPES / config.recipe.model / "config.json").read_text())


def found(recipe, *, tensor=1, world=1, holds=lambda *_: True):
    """The hurts, by what hurts."""
    layout = Layout(world=world, data=world // tensor, tensor=tensor, pipeline=1, context=1)
    return {hurt.what: hurt for hurt in hurts(recipe, layout, holds)}


def plain(**sections):
    """A recipe that nothing hurts, with sections replaced."""
    recipe = {
        "model": {"attn_implementation": "sdpa"},
        "step_scheduler": {"global_batch_size": 8, "local_batch_size": 1},
        "distributed": {"strategy": "ddp", "tp_size": 1, "enable_compile": True},
        "optimizer": {"_target_": "torch.optim.Adam", "fused": True},
        "dataloader": {"pin_memory": False},
    }
    return recipe | sections


# Memory


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_the_estimate_is_near_the_measured_peak(path):
    record = json.loads(path.read_text())
    config = composed(*record["command"][3:])
    needed = estimate(model_config(config), config.train, Layout(**record["identity"]["layout"]), config.data.seq_len)
    assert needed.total_gib == pytest.approx(record["summary"]["peak_memory_gib"], rel=0.1)


def needed_gib(name, ranks=8, seq_len=512, **changes):
    config = composed(f"recipe={name}")
    recipe = changed(config.train, {key.replace("__", "."): value for key, value in changes.items()})
    return estimate(model_config(config), recipe, layout_of(recipe, ranks), seq_len).total_gib


def test_full_fine_tuning_takes_four_times_the_weights_and_lora_little_more_than_once():
    gib = 8.03e9 * 2 / 2**30
    assert needed_gib("llama8b_sft", ranks=1, seq_len=8) == pytest.approx(4 * gib, rel=0.01)
    assert needed_gib("llama8b_peft", ranks=1, seq_len=8) == pytest.approx(gib, rel=0.05)


@pytest.mark.parametrize("name", ["llama8b_peft", "llama8b_sft"])
def test_a_replica_takes_what_one_gpu_alone_does_and_the_buckets_of_its_gradients(name):
    replicas = {"distributed__strategy": "ddp", "step_scheduler__global_batch_size": 8}
    alone, buckets = needed_gib(name, ranks=1), needed_gib(name, ranks=8, **replicas)
    gradients = (8.03e9 if "sft" in name else 8 * 32 * 327_680 / 16) * 2 / 2**30
    assert buckets - alone == pytest.approx(gradients, rel=0.01, abs=0.05)
    views = needed_gib(name, ranks=8, distributed__gradient_as_bucket_view=True, **replicas)
    assert views == pytest.approx(alone)


def test_an_optimizer_that_is_not_fused_makes_a_copy_in_its_step():
    gib = 8.03e9 * 2 / 2**30
    assert needed_gib("llama8b_sft", ranks=1, seq_len=8, optimizer__fused=False) == pytest.approx(5 * gib, rel=0.01)


def test_tensor_parallelism_splits_what_is_between_the_linears_and_not_what_is_in_and_out():
    outer, inner = 4 * 4096, 4096 + 2 * 1024 + 2 * 4096 + 2 * 14336 + 14336
    logits = 16 * 128256
    for tensor in (1, 8):
        long, short = (
            needed_gib("llama8b_peft", seq_len=seq_len, distributed__tp_size=tensor, step_scheduler__local_batch_size=1)
            for seq_len in (3072, 2048)
        )
        assert long - short == pytest.approx((32 * 2 * (outer + inner / tensor) + logits) * 1024 / 2**30)


def test_what_trains_and_its_state_are_shared_by_all_ranks():
    one, eight = (needed_gib("llama8b_sft", ranks=ranks, seq_len=8) for ranks in (1, 8))
    assert one / 8 < eight < one / 4  # the rest is what FSDP gathers


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama8b_peft", {"distributed__activation_checkpointing": True}),
        ("llama8b_peft", {"step_scheduler__local_batch_size": 1}),
        ("llama70b_peft", {"distributed__tp_size": 8}),
        ("llama8b_sft", {"optimizer___target_": "torch.optim.SGD"}),
        ("llama70b_sft", {"distributed__cp_size": 1, "step_scheduler__global_batch_size": 2}),  # nothing accumulates
    ],
)
def test_what_saves_memory_lowers_the_estimate(name, changes):
    assert needed_gib(name, seq_len=4096, **changes) < needed_gib(name, seq_len=4096)


def test_a_model_that_is_not_known_has_no_estimate():
    recipe = composed("recipe=llama8b_peft").train
    assert estimate({"model_type": "mamba"}, recipe, layout_of(recipe, 1), 512) is None
    config = composed("recipe=llama8b_peft")
    other = changed(config.train, {"distributed.strategy": "megatron_fsdp"})
    assert estimate(model_config(config), other, layout_of(other, 1), 512) is None


# Fit


@pytest.mark.parametrize(
    ("name", "machine", "verdict", "ranks", "wanted"),
    [
        ("llama8b_peft", ONE_H200, "fits", 1, ()),
        ("llama8b_sft", Machine(1, 79.6), "fits", 1, ()),
        ("llama8b_sft", Machine(1, 64.0), "may fit", 1, ()),
        ("llama8b_sft", Machine(1, 40.0), "does not fit", 1, ()),
        ("llama70b_peft", EIGHT_H200, "fits", 8, ()),
        ("gemma31b_peft", ONE_H200, "fits", 1, ("launch.nproc_per_node=1",)),
        (
            "llama70b_peft",
            TWO_H200,
            "fits",
            2,
            ("launch.nproc_per_node=2", "train.distributed.tp_size=1"),
        ),
        ("llama70b_sft", EIGHT_H200, "fits", 8, ()),
        ("llama70b_sft", TWO_H200, "does not fit", 8, ()),
        (
            "llama8b_peft",
            Machine(1, 26.0),
            "fits",
            1,
            ("+train.distributed.activation_checkpointing=true",),
        ),
        ("llama8b_peft", Machine(1, 30.0), "fits", 1, ("+train.distributed.activation_checkpointing=true",)),
        ("llama70b_peft", NO_GPU, "no GPU here", 8, ()),
    ],
)
def test_a_recipe_fits_as_it_is_or_with_the_smallest_change(name, machine, verdict, ranks, wanted):
    fit = finding(machine, f"recipe={name}").fit
    assert (fit.verdict, fit.num_ranks, fit.overrides) == (verdict, ranks, wanted)


def test_fewer_ranks_get_a_global_batch_that_divides():
    fit = finding(Machine(3, 140.4), "recipe=gemma31b_peft").fit
    assert fit.overrides == ("launch.nproc_per_node=3", "train.step_scheduler.global_batch_size=3")
    fit = finding(Machine(3, 140.4), "recipe=llama8b_peft", "launch.nproc_per_node=3").fit
    assert fit.overrides == ("train.step_scheduler.global_batch_size=12",)


def test_a_number_of_data_parallel_ranks_that_a_recipe_names_gives_way_to_the_gpus_there_are():
    fit = finding(TWO_H200, "recipe=llama70b_peft", "train.distributed.dp_size=2").fit
    assert fit.overrides == ("launch.nproc_per_node=2", "train.distributed.tp_size=1")
    named = ("train.distributed.dp_size=4", "train.step_scheduler.global_batch_size=32")
    fit = finding(EIGHT_H200, "recipe=llama8b_peft", *named).fit
    assert (fit.verdict, fit.overrides) == ("fits", ("train.distributed.dp_size=none",))


def test_a_recipe_for_the_cpu_needs_no_gpu():
    assert finding(NO_GPU, "recipe=tiny_llama_peft").fit is None


def test_it_is_judged_at_the_length_that_its_data_have():
    lengths = {"+train.dataset.seq_length=4096": 4096, "data=synthetic data.seq_len=256": 256, "data=recipe": 512}
    found = {words: finding(ONE_H200, "recipe=llama8b_sft", *words.split()) for words in lengths}
    assert {words: one.seq_len for words, one in found.items()} == lengths
    needed = [one.fit.estimate_gib for one in found.values()]
    assert needed[0] > needed[2] > 0


def test_a_model_that_would_have_to_be_downloaded_is_unknown(tmp_path):
    text = (RECIPES / "llama8b_peft.yaml").read_text().replace("meta-llama/Llama-3.1-8B-Instruct", "someone/else")
    (tmp_path / "mine.yaml").write_text(text)
    fit = finding(ONE_H200, f"recipe={tmp_path}/mine.yaml").fit
    assert (fit.verdict, fit.estimate_gib) == ("unknown", None)


def test_a_model_in_a_directory_is_read_there(tmp_path):
    (tmp_path / "config.json").write_text((RECIPES / "models/llama-3.1-8b/config.json").read_text())
    text = (RECIPES / "llama8b_peft.yaml").read_text().replace("meta-llama/Llama-3.1-8B-Instruct", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(text)
    mine, packaged = finding(ONE_H200, f"recipe={tmp_path}/mine.yaml"), finding(ONE_H200, "recipe=llama8b_peft")
    assert mine.fit == packaged.fit


def test_a_recipe_that_cannot_run_anywhere_is_refused_by_its_key(tmp_path):
    text = (RECIPES / "llama8b_peft.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("local_batch_size: 4", "local_batch_size: many"))
    with pytest.raises(RequestError, match="local_batch_size=many"):
        finding(ONE_H200, f"recipe={tmp_path}/mine.yaml")


# Hurts


def test_nothing_hurts_a_recipe_that_is_made_for_cc():
    assert found(plain(), world=8) == {}


@pytest.mark.parametrize(
    ("recipe", "ranks", "what", "mended"),
    [
        (plain(dataloader={"pin_memory": True}), {}, "pinned loader", ("train.dataloader.pin_memory=false",)),
        (plain(distributed={"tp_size": 1}), {}, "eager mode", ("step=graphed",)),
        (
            plain(distributed={"enable_compile": False}, fp8={"enabled": True}),
            {},
            "eager mode",
            ("train.distributed.enable_compile=true",),
        ),
        (
            plain(model={"attn_implementation": "eager"}),
            {},
            "eager attention",
            ("train.model.attn_implementation=sdpa",),
        ),
        (
            plain(optimizer={"_target_": "torch.optim.AdamW"}),
            {"tensor": 2, "world": 2, "holds": lambda *_: False},
            "per-tensor optimizer",
            ("+train.optimizer.fused=true",),
        ),
        (
            plain(distributed={"tp_size": 4, "enable_compile": True}),
            {"tensor": 4, "world": 4},
            "TP width",
            ("train.distributed.tp_size=1",),
        ),
        (
            plain(distributed={"tp_size": 4, "enable_compile": True}),
            {"tensor": 4, "world": 4, "holds": lambda _, layout: layout.tensor > 1},
            "TP width",
            ("train.distributed.tp_size=2",),
        ),
        (
            plain(distributed={"tp_size": 2, "enable_compile": True}, step_scheduler={"global_batch_size": 3}),
            {"tensor": 2, "world": 2},
            "TP width",
            ("train.distributed.tp_size=1", "train.step_scheduler.global_batch_size=2"),
        ),
        (plain(distributed={"strategy": "FSDP2", "enable_compile": True}), {"world": 2}, "FSDP2", ("step=graphed",)),
        (plain(distributed={"enable_compile": True}), {"world": 2}, "FSDP2", ("step=graphed",)),
        (plain(distributed={"enable_compile": True}, fp8={"enabled": True}), {"world": 2}, "FSDP2", ()),
        (
            plain(distributed={"tp_size": 2, "enable_async_tensor_parallel": True, "enable_compile": True}),
            {"tensor": 2, "world": 2, "holds": lambda *_: False},
            "multicast",
            ("train.distributed.enable_async_tensor_parallel=false",),
        ),
    ],
)
def test_what_hurts_is_named_with_the_override_that_mends_it(recipe, ranks, what, mended):
    assert {name: hurt.overrides for name, hurt in found(recipe, **ranks).items()} == {what: mended}


def test_a_recipe_that_is_compiled_as_a_whole_is_not_eager():
    assert found(plain(distributed={}, compile={"enabled": True})) == {}


def test_what_a_changed_layout_no_longer_has_does_not_hurt():
    whats = {hurt.what for hurt in finding(TWO_H200, "recipe=llama70b_peft").hurts}
    assert whats == {"eager mode", "FSDP2"}
    whats = {hurt.what for hurt in finding(EIGHT_H200, "recipe=llama70b_peft").hurts}
    assert whats == {"eager mode", "TP width", "per-tensor optimizer", "FSDP2"}


# Overrides


def test_a_new_key_is_added_and_an_old_one_set_and_the_recipe_itself_kept():
    recipe = {"optimizer": {"lr": 1}, "compile": None}
    changes = {"optimizer.lr": 2, "optimizer.fused": True, "compile.enabled": True}
    assert changed(recipe, changes) == {"optimizer": {"lr": 2, "fused": True}, "compile": {"enabled": True}}
    assert overrides(recipe, changes) == (
        "train.optimizer.lr=2",
        "+train.optimizer.fused=true",
        "+train.compile.enabled=true",
    )
    assert recipe == {"optimizer": {"lr": 1}, "compile": None}


# Table


def seen_machine(**replaced):
    gpus = {
        "names": ("NVIDIA H200",) * 2,
        "memory_gib": (140.4, 140.4),
        "driver": "580.1",
        "cuda": "13.0",
        "cc": {"source": "nvmlSystemGetConfComputeSettings", "devtools": 0, "ready": 1},
        "topology": {"matrix": [["X", "NV18"], ["NV18", "X"]]},
    }
    seen = {
        "gpus": gpus,
        "cc": {"bounce_buffer": False, "ppcie": True, "nvle": None},
        "guest": {"kind": "tdx", "seen": ["/dev/tdx_guest"], "has_reports": True},
        "swiotlb": {"size_bytes": 1 << 30, "used_bytes": None, "peak_used_bytes": 8 << 20, "parameter": None},
        "tdisp": {"state": "none"},
        "multicast": [False, False],
    }
    return seen | replaced


def printed(*what):
    console = Console(file=io.StringIO(), width=160)
    print_findings(*what, console)
    return console.file.getvalue()


def test_the_table_shows_the_machine_its_recipes_and_what_hurts():
    text = printed(seen_machine(), "on", None, [finding(TWO_H200, "recipe=llama70b_peft")])
    for words in (
        "CC on",
        "2 x NVIDIA H200, 140.4 GiB",
        "bounce buffer off, PPCIE on, encrypted NVLink unknown, devtools off, ready (nvml",
        "tdx (/dev/tdx_guest)",
        "1,024 MiB, peak 8 MiB",
        "NV18 between all GPUs",
        "offered by 0 of 2 GPUs; never used",
        "launch.nproc_per_node=2 train.distributed.tp_size=1",
    ):
        assert words in text


def test_a_machine_not_fit_to_measure_is_said_first():
    text = printed(seen_machine(), "unknown", "the GPUs are in CC devtools mode", [])
    assert text.index("devtools") < text.index("H200")


def test_recipes_that_the_same_thing_hurts_share_a_row():
    findings = [finding(ONE_H200, f"recipe={name}") for name in ("llama8b_peft", "llama8b_sft")]
    text = printed(seen_machine(), "off", None, findings)
    assert text.count("step=graphed") == 1
    assert "in llama8b_peft, llama8b_sft" in text


def test_the_table_says_which_engine_runs_which_recipe_and_why_not():
    findings = [finding(TWO_H200, f"recipe={name}") for name in ("llama8b_peft", "tiny_llama_sft", "llama70b_peft")]
    assert [bool(one.not_hf) for one in findings] == [False, False, True]
    text = printed(seen_machine(), "on", None, findings)
    for words in (
        "automodel runs llama8b_peft, tiny_llama_sft, llama70b_peft",
        "hf runs llama8b_peft, tiny_llama_sft ",
        "hf not llama70b_peft: train.distributed.tp_size=4; allowed is none",
    ):
        assert words in text
    assert "hf runs none of these" in printed(seen_machine(), "on", None, findings[2:])


def test_gpus_of_several_kinds_and_ways_are_all_shown():
    gpus = seen_machine()["gpus"] | {
        "names": ("A", "B", "A"),
        "memory_gib": (80.0, 40.0, 80.0),
        "topology": {"matrix": [["X", "PHB", None], ["PHB", "X", "SYS"], [None, "SYS", "X"]]},
    }
    text = printed(seen_machine(gpus=gpus), "off", None, [])
    assert "2 x A, 80.0 GiB, 1 x B, 40.0 GiB" in text
    assert "GPU 0: X PHB unknown; GPU 1: PHB X SYS; GPU 2: unknown SYS X" in text
