"""The packaged recipes and a user's own, tiny, trained to their end."""

import json
import math
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cctrain.packaged import RECIPES

SHORT = ("measure.warmup=1", "measure.steps=3")


@pytest.fixture(scope="module")
def llama_peft(run_cctrain):
    """The run of the README, as a user gets it."""
    return run_cctrain("recipe=tiny_llama_peft", TORCHDYNAMO_DISABLE="")


def test_a_complete_run_ends_in_one_line_for_scripts(llama_peft):
    assert llama_peft.code == 0, llama_peft.stderr
    promised = ["run_dir", "mode", "tokens_per_s_per_gpu", "step_time_s", "steady"]
    assert list(llama_peft.last_line) == [*promised, "real_tokens_per_s_per_gpu", "status", "exit_code"]
    assert (llama_peft.last_line["status"], llama_peft.last_line["exit_code"]) == ("complete", 0)
    assert llama_peft.last_line["run_dir"] == str(llama_peft.run_dir)
    summary = llama_peft.record["summary"]
    assert llama_peft.last_line["tokens_per_s_per_gpu"] == summary["tokens_per_s_per_gpu"]["mean"]
    assert llama_peft.last_line["step_time_s"] == summary["step_time_s"]["median"]
    assert llama_peft.last_line["steady"] is summary["steady_state"]["is_steady"]


def test_the_record_holds_what_the_contract_promises(llama_peft):
    record = llama_peft.record
    assert set(record) >= {
        *("schema_version", "run_id", "recipe", "engine", "step_kind", "mode", "status"),
        *("identity", "platform", "steps", "summary", "crossings"),
    }
    assert (record["status"], record["failure"], record["recipe"]) == ("complete", None, "tiny_llama_peft")
    assert record["run_id"] == llama_peft.run_dir.name
    assert set(record["steps"][0]) >= {
        *("step", "step_time_s", "rank_step_time_s", "data_wait_s", "phases_s", "padded_tokens", "real_tokens"),
        *("label_tokens", "loss", "is_warmup"),
    }
    assert set(record["summary"]) >= {
        *("step_time_s", "tokens_per_s_per_gpu", "real_tokens_per_s_per_gpu", "peak_memory_gib", "mfu"),
        *("joules_per_token", "steady_state"),
    }
    assert set(record["summary"]["tokens_per_s_per_gpu"]) >= {"median", "mean", "ci95"}
    assert set(record["identity"]) >= {"recipe_hash", "model", "layout", "batch", "sequence", "precision", "versions"}
    assert record["identity"]["layout"]["data"] == record["identity"]["num_gpus"] == 2


def test_a_step_takes_as_long_as_the_slowest_of_both_ranks(llama_peft):
    for step in llama_peft.record["steps"]:
        assert len(step["rank_step_time_s"]) == 2
        assert step["step_time_s"] == max(step["rank_step_time_s"])
        assert 0 <= step["data_wait_s"] < step["step_time_s"]


def test_phases_add_up_to_the_step(llama_peft):
    for step in llama_peft.record["steps"]:
        assert set(step["phases_s"]) == {"data_wait", "forward", "backward", "optimizer", "other"}
        assert sum(step["phases_s"].values()) == pytest.approx(step["step_time_s"], rel=1e-6)


def test_step_times_are_all_the_time_there_was(llama_peft):
    """By AutoModel's own log, which is rank 0's; its lines carry milliseconds."""
    log = [json.loads(line) for line in (llama_peft.run_dir / "checkpoints" / "training.jsonl").open()]
    minutes, seconds = zip(*(entry["timestamp"][14:-1].split(":") for entry in log), strict=True)
    clock = [60 * int(m) + float(s) for m, s in zip(minutes, seconds, strict=True)]
    wall_s = (clock[-1] - clock[4]) % 3600
    seconds = [step["rank_step_time_s"][0] for step in llama_peft.record["steps"][5:]]
    assert sum(seconds) == pytest.approx(wall_s, rel=0.05)


def test_the_loss_of_random_weights_starts_at_chance_and_falls(llama_peft):
    losses = [step["loss"] for step in llama_peft.record["steps"]]
    assert losses[0] == pytest.approx(math.log(1024), abs=0.3)
    assert statistics.mean(losses[-5:]) < losses[0] - 0.2


def test_a_run_leaves_only_its_run_directory(llama_peft):
    assert llama_peft.processes() == []
    assert list(Path(llama_peft.process.args[-1].partition("=")[2]).iterdir()) == [llama_peft.run_dir]
    names = {path.name for path in llama_peft.run_dir.iterdir()}
    assert names >= {"automodel.yaml", "config.json", "logs", "run.json", "samples"}
    assert not names & {"running.json", ".reserve", "wandb"}  # the default tracker is told WANDB_MODE=disabled
    assert "wandb" not in llama_peft.stderr


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A user's own file, with column names of their own."""
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    rows = [{"q": f"What is {n} + {n}?", "a": f"It is {2 * n}, which is twice {n}."} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def llama_sft(run_cctrain, questions):
    """One rank, which Slurm started."""
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
    columns = ("data=jsonl", f"data.path={questions}", "data.question=q", "data.answer=a")
    return run_cctrain("recipe=tiny_llama_sft", *columns, *SHORT, **slurm)


def test_own_data_are_read_under_their_own_column_names(llama_sft):
    assert llama_sft.code == 0, llama_sft.stderr
    steps = llama_sft.record["steps"]
    assert llama_sft.record["status"] == "complete"
    assert all(0 < step["label_tokens"] < step["real_tokens"] <= step["padded_tokens"] for step in steps)


def test_warm_up_and_measured_steps_are_as_many_as_asked_for(llama_sft):
    assert [step["is_warmup"] for step in llama_sft.record["steps"]] == [True, False, False, False]


def test_a_rank_that_slurm_started_does_not_launch_again(llama_sft):
    assert llama_sft.last_line["run_dir"] == str(llama_sft.run_dir)
    assert not (llama_sft.run_dir / "logs" / "torchrun.log").exists()
    assert len(llama_sft.record["steps"][0]["rank_step_time_s"]) == 1
    assert [path.name for path in llama_sft.run_root.iterdir()] == [llama_sft.run_dir.name]


AUTOMODEL_ALONE = """
import sys
from cctrain.engines import cpu
cpu.install()  # AutoModel itself needs a GPU
from nemo_automodel.components.config.loader import load_yaml_config
from nemo_automodel.recipes.llm.train_ft import TrainFinetuneRecipeForNextTokenPrediction
recipe = TrainFinetuneRecipeForNextTokenPrediction(load_yaml_config(sys.argv[1]))
recipe.setup()
recipe.run_train_validation_loop()
"""


def test_automodel_alone_runs_the_recipe_written_down_to_the_same_loss(llama_sft, clean_environment, tmp_path):
    log = llama_sft.run_dir / "checkpoints" / "training.jsonl"
    log.unlink()
    job = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, "-c", AUTOMODEL_ALONE, str(llama_sft.run_dir / "automodel.yaml")]
    alone = subprocess.run(
        command, env=clean_environment | job, cwd=tmp_path, timeout=120, check=False, capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    losses = [json.loads(line)["loss"] for line in log.open()]
    assert losses == pytest.approx([step["loss"] for step in llama_sft.record["steps"]], rel=1e-6)


@pytest.fixture(scope="module")
def gemma_peft(run_cctrain):
    return run_cctrain("recipe=tiny_gemma_peft", *SHORT)


def test_gemma_trains_on_images_on_two_ranks(gemma_peft):
    assert gemma_peft.code == 0, gemma_peft.stderr
    steps = gemma_peft.record["steps"]
    assert gemma_peft.record["status"] == "complete"
    assert [step["num_images"] for step in steps] == [4] * 4
    assert all(len(step["rank_step_time_s"]) == 2 and step["label_tokens"] > 0 for step in steps)


def test_gemmas_random_weights_start_at_chance(gemma_peft):
    text = json.loads((RECIPES / "models" / "tiny-gemma-4" / "config.json").read_text())["text_config"]
    assert gemma_peft.record["steps"][0]["loss"] == pytest.approx(math.log(text["vocab_size"]), abs=0.3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A user's own images, named in a column of their file."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    noise = random.Random(0)
    rows = []
    for number in range(8):
        Image.frombytes("RGB", (64, 64), noise.randbytes(64 * 64 * 3)).save(folder / f"{number}.png")
        rows.append({"ask": "What is this?", "say": f"Noise number {number}.", "picture": f"{number}.png"})
    path = folder / "pictures.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def own_recipe(tmp_path_factory):
    """A complete AutoModel recipe that is not ours, on the data set it names: AutoModel's mock, 128 tokens a sample."""
    recipe = yaml.safe_load((RECIPES / "tiny_llama_sft.yaml").read_text())
    recipe["model"]["config"]["pretrained_model_name_or_path"] = str(RECIPES / "models" / "tiny-llama")
    recipe["step_scheduler"] |= {"global_batch_size": 6, "local_batch_size": 3}
    recipe["dataset"]["batch_size"] = 3
    path = tmp_path_factory.mktemp("recipes") / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def two_at_once(start_cctrain, tmp_path_factory, pictures, own_recipe):
    """Gemma on the user's images beside the user's own recipe, under one run root."""
    root = tmp_path_factory.mktemp("runs")
    data = ("data=jsonl", f"data.path={pictures}", "data.question=ask", "data.answer=say", "data.image=picture")
    one_rank = "launch.nproc_per_node=1"
    gemma = start_cctrain("recipe=tiny_gemma_sft", *data, one_rank, *SHORT, run_root=root)
    own = start_cctrain(f"recipe={own_recipe}", one_rank, *SHORT, run_root=root)
    return gemma.finish(), own.finish()


def test_two_runs_at_once_do_not_collide(two_at_once):
    for run in two_at_once:
        assert run.code == 0, run.stderr
    dirs = [Path(run.last_line["run_dir"]) for run in two_at_once]
    assert sorted(dirs) == two_at_once[0].run_dirs
    records = [json.loads((run_dir / "run.json").read_text()) for run_dir in dirs]
    assert [record["recipe"] for record in records] == ["tiny_gemma_sft", "mine"]
    assert [(record["status"], len(record["steps"])) for record in records] == [("complete", 4)] * 2


def test_own_images_are_read_from_the_column_that_names_them(two_at_once):
    record = json.loads((Path(two_at_once[0].last_line["run_dir"]) / "run.json").read_text())
    assert [step["num_images"] for step in record["steps"]] == [4] * 4


def test_a_recipe_of_your_own_is_trained_as_it_is_written(two_at_once):
    record = json.loads((Path(two_at_once[1].last_line["run_dir"]) / "run.json").read_text())
    assert record["identity"]["batch"] == {"global_batch_size": 6, "local_batch_size": 3}
    assert {step["padded_tokens"] for step in record["steps"]} == {6 * 128}
