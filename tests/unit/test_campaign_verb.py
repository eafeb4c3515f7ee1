"""The verb campaign from the command line, where nothing is left to run: the plan, the tables, what is left out."""

import dataclasses
import json
import signal

import pytest
from make_records import emulated_record, run_record, write

from cctrain.__main__ import main
from cctrain.campaign.keys import Keys, platform_identity
from cctrain.campaign.ledger import Ledger
from cctrain.campaign.matrix import parse
from cctrain.campaign.plan import planned
from cctrain.platform import gpu

TWO = ("campaign=seed", "recipe=gemma31b_sft,llama70b_peft")
"""Half of the seed's rows: to compose takes time."""
LOSSES = {"gemma31b_peft": 0.32, "gemma31b_sft": 0.18, "llama70b_peft": 0.30, "llama70b_sft": 0.21}


@pytest.fixture(autouse=True)
def own_signals():
    """The verb takes SIGTERM and SIGHUP for a Ctrl-C; this process goes on after it."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def done(root, arguments, record_of, leave_open="no setting"):
    """A run root in which every trial of the campaign but those without a record has been run, and those with the
    setting `leave_open` not even tried."""
    matrix = parse([*arguments, f"run_root={root}"])
    keys = Keys(platform_identity(gpu.observe()))
    with Ledger(matrix.ledger) as ledger:
        for number, trial in enumerate(planned(matrix)):
            record = record_of(number, trial)
            if leave_open in trial.settings:
                continue
            outcomes = [("complete", write(root, record).name)] if record else [("failed", None)] * 2
            for attempt, (outcome, run) in enumerate(outcomes):
                token = f"{number:06d}{attempt:02d}"
                ledger.append("begin", key=keys.key(trial), token=token)
                ledger.append("end", key=keys.key(trial), token=token, outcome=outcome, run=run, why="out of memory")
    return matrix


def of_the_seed(number, trial):
    recipe = trial.settings[0].removeprefix("recipe=")
    cost = 1 - LOSSES[recipe] if trial.mode == "on" else 1.0
    return run_record(trial.mode, number, recipe=recipe, num_gpus=8, step_time_s=1.0 / cost, between=0.0005)


def said(capsys, *arguments):
    code = main(["campaign", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_seed_campaign_ends_in_its_table_beside_the_published_losses(capsys, tmp_path):
    done(tmp_path, ["campaign=seed"], of_the_seed)
    code, out, err = said(capsys, "campaign=seed", f"run_root={tmp_path}")
    assert code == 0, err
    assert err == "note: 16 of 16 trials already done\n"
    for published in ("8 x H200", "8 x B300", "32.3 %", "18.0 %", "29.7 %", "21.0 %", "CC on / CC off"):
        assert published in out
    facts = json.loads(out.splitlines()[-1])
    assert (facts["num_trials"], facts["num_complete"], facts["num_left"]) == (16, 16, 0)
    (compared,) = facts["comparison"]
    assert {row["recipe"]: round(row["loss"], 2) for row in compared["comparisons"]} == LOSSES
    assert len(set(facts["runs"])) == 16


def test_a_row_that_failed_is_named_and_the_others_are_compared(capsys, tmp_path):
    def without_one(number, trial):
        return None if "recipe=gemma31b_sft" in trial.settings and trial.mode == "on" else of_the_seed(number, trial)

    done(tmp_path, TWO, without_one)
    code, out, err = said(capsys, *TWO, f"run_root={tmp_path}")
    facts = json.loads(out.splitlines()[-1])
    assert (code, facts["num_failed"], facts["exit_code"]) == (4, 2, 4)
    assert "6 of 8 trials already done, 2 given up" in err
    assert "failed twice: recipe=gemma31b_sft cc=on repeat 1: out of memory" in err
    assert "2 trials given up; campaign.retry_failed=true tries again" in facts["why"]
    (compared,) = facts["comparison"]
    assert [row["recipe"] for row in compared["comparisons"]] == ["llama70b_peft"]


def test_a_row_that_cannot_be_compared_keeps_no_other_from_it(capsys, tmp_path):
    def with_one_other(number, trial):
        record = of_the_seed(number, trial)
        is_odd = "recipe=gemma31b_sft" in trial.settings and number < 2
        return run_record("off", number, recipe="gemma31b_sft", num_gpus=4) if is_odd else record

    done(tmp_path, TWO, with_one_other)
    code, out, err = said(capsys, *TWO, f"run_root={tmp_path}")
    facts = json.loads(out.splitlines()[-1])
    assert (code, facts["num_complete"]) == (2, 8)
    assert "identity.num_gpus differs: 4 (" in err
    (compared,) = facts["comparison"]
    assert [row["recipe"] for row in compared["comparisons"]] == ["llama70b_peft"]


def test_settings_that_were_varied_are_compared_apart(capsys, tmp_path):
    arguments = ["recipe=llama8b_peft", "cc=off,on", "train.optimizer.lr=0.1,0.2", "campaign.repeats=2"]

    def record(number, trial):
        return run_record(trial.mode, number, recipe="llama8b_peft", step_time_s=0.28 if trial.mode == "on" else 0.2)

    done(tmp_path, arguments, record)
    code, out, err = said(capsys, *arguments, f"run_root={tmp_path}")
    assert code == 0, err
    facts = json.loads(out.splitlines()[-1])
    assert [each["settings"] for each in facts["comparison"]] == [
        ["train.optimizer.lr=0.1"],
        ["train.optimizer.lr=0.2"],
    ]
    assert [each["num_runs"] for each in facts["comparison"]] == [4, 4]


@pytest.mark.parametrize(
    ("key", "part", "name"),
    [
        ("train.step_scheduler.local_batch_size", "batch", "local_batch_size"),
        ("++train.step_scheduler.local_batch_size", "batch", "local_batch_size"),
        ("launch.nproc_per_node", "layout", "data"),
    ],
)
def test_sizes_that_were_varied_stand_in_one_table(capsys, tmp_path, key, part, name):
    arguments = ["recipe=tiny_llama_peft", "cc=off,on", f"{key}=1,2", "campaign.repeats=2"]

    def record(number, trial):
        made = run_record(trial.mode, number, recipe="tiny_llama_peft")
        size = int(next(line for line in trial.settings if key in line).partition("=")[2])
        return dataclasses.replace(made, identity={**made.identity, part: {**made.identity[part], name: size}})

    done(tmp_path, arguments, record)
    code, out, err = said(capsys, *arguments, f"run_root={tmp_path}")
    assert code == 0, err
    facts = json.loads(out.splitlines()[-1])
    assert [each["settings"] for each in facts["comparison"]] == [[]]
    assert len(facts["comparison"][0]["comparisons"]) == 2


def test_a_mode_that_this_machine_is_not_in_waits_and_what_to_do_is_said(capsys, tmp_path):
    code, _, err = said(capsys, "recipe=tiny_llama_peft", "cc=on", "campaign.repeats=1", f"run_root={tmp_path}")
    assert code == 3
    assert "1 trial left, the next with CC on" in err
    assert "--set-cc-mode=on" in err or "no GPU here that knows of confidential computing" in err
    assert "give the same command again" in err


def test_a_dry_run_prints_the_plan_with_what_is_done_and_makes_nothing(capsys, tmp_path):
    code, out, _ = said(capsys, *TWO, "dry_run=true", f"run_root={tmp_path / 'new'}")
    plan = json.loads(out.splitlines()[-1])
    assert (code, len(plan["trials"]), {trial["state"] for trial in plan["trials"]}) == (0, 8, {"to do"})
    assert not (tmp_path / "new").exists()
    done(tmp_path, TWO, of_the_seed)
    _, out, _ = said(capsys, *TWO, "dry_run=true", f"run_root={tmp_path}")
    assert {trial["state"] for trial in json.loads(out.splitlines()[-1])["trials"]} == {"complete"}


def test_trials_of_other_settings_in_the_ledger_are_left_out_and_said(capsys, tmp_path):
    done(tmp_path, TWO, of_the_seed)
    with Ledger(tmp_path / "campaign-seed.jsonl") as ledger:
        ledger.append("end", key="0" * 16, token="ffffffff", outcome="complete", run="nowhere")
    code, out, err = said(capsys, *TWO, f"run_root={tmp_path}")
    assert (code, json.loads(out.splitlines()[-1])["num_complete"]) == (0, 8)
    assert "1 trial of other settings, or of other GPUs or versions" in err


@pytest.mark.parametrize("verb", [[], ["train"]])
def test_a_run_refuses_a_campaigns_keys_and_names_the_verb(capsys, verb):
    assert main([*verb, "recipe=tiny_llama_peft", "campaign=seed"]) == 2
    assert "python -m cctrain campaign" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["recipe=tiny_llama_peft,tiny_lama_sft"], "Did you mean tiny_llama_sft?"),
        (
            ["recipe=tiny_llama_peft", "engine=automodel,hf", "step=graphed"],
            "engine=hf cc=auto repeat 1: step=graphed is AutoModel's",
        ),
        (["recipe=tiny_llama_peft", "train.distributed.strategy=fsdp2,dpd"], "Did you mean ddp?"),
    ],
)
def test_a_trial_that_every_run_would_refuse_is_refused_before_a_ledger_is_made(capsys, tmp_path, arguments, says):
    code, _, err = said(capsys, *arguments, f"run_root={tmp_path / 'new'}")
    assert code == 2
    assert says in err
    assert not (tmp_path / "new").exists()


def test_inside_a_job_that_has_started_ranks_it_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    code, _, err = said(capsys, "recipe=tiny_llama_peft", f"run_root={tmp_path}")
    assert code == 2
    assert "run it outside of torchrun and srun" in err


def test_a_run_root_of_any_name_is_the_one_of_its_trials(capsys, tmp_path):
    path = tmp_path / "q=it's"
    quoted = str(path).replace("'", "\\'")
    code, out, _ = said(capsys, "recipe=tiny_llama_peft", "campaign.repeats=1", f"run_root='{quoted}'", "dry_run=true")
    assert code == 0
    assert str(path) in out
    code, _, err = said(capsys, "recipe=tiny_llama_peft", "run_root=${oc.env:HOME}/runs", "dry_run=true")
    assert code == 2
    assert "allowed is a plain path" in err


def test_help_is_the_verbs_own(capsys):
    code, out, _ = said(capsys, "--help")
    assert code == 0
    assert "campaign.repeats=" in out


def test_a_campaign_over_models_and_layouts_ends_in_one_table(capsys, tmp_path):
    axes = ("recipe=llama1b_peft,llama8b_peft", "train.distributed.tp_size=1,2", "launch.nproc_per_node=2")
    whole = (*axes, "train.step_scheduler.global_batch_size=8", "cc=emulated", "tolls=b300", "campaign.repeats=1")

    def record_of(number, trial):
        width = 2 if "train.distributed.tp_size=2" in trial.settings else 1
        layout = {"world": 2, "data": 2 // width, "tensor": width, "pipeline": 1, "context": 1}
        record = emulated_record(number, recipe=trial.settings[0].removeprefix("recipe="), num_gpus=2)
        return dataclasses.replace(record, identity={**record.identity, "layout": layout})

    done(tmp_path, whole, record_of)
    _, out, err = said(capsys, *whole, "campaign.allow=steady", f"run_root={tmp_path}")
    (compared,) = json.loads(out.splitlines()[-1])["comparison"]
    found = sorted((row["recipe"], row["setting"]) for row in compared["comparisons"])
    layouts = ("data 2", "tensor 2")
    assert found == [(recipe, layout) for recipe in ("llama1b_peft", "llama8b_peft") for layout in layouts], err


def test_trials_that_this_machine_is_too_small_for_are_named_and_use_up_no_tries(capsys, tmp_path):
    arguments = ["recipe=tiny_llama_peft,llama8b_peft", "cc=off", "campaign.repeats=1"]

    def of_the_cpu(number, trial):
        is_tiny = "recipe=tiny_llama_peft" in trial.settings
        return run_record("off", number, recipe="tiny_llama_peft") if is_tiny else None

    done(tmp_path, arguments, of_the_cpu, leave_open="recipe=llama8b_peft")
    before = (tmp_path / "campaign.jsonl").read_text()
    code, out, err = said(capsys, *arguments, f"run_root={tmp_path}")
    facts = json.loads(out.splitlines()[-1])
    assert (code, facts["num_complete"], facts["num_failed"], facts["num_left"]) == (2, 1, 0, 1)
    assert "recipe=llama8b_peft cc=off repeat 1: recipe llama8b_peft needs 1 GPU" in err
    added = (tmp_path / "campaign.jsonl").read_text().removeprefix(before)
    assert '"begin"' not in added
