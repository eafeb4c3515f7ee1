"""Checkpoints, validation and a resumed run between steps that are replayed, on one GPU and on two."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

from tests.questions import write_recipe  # noqa: E402 - which needs torch

KEEPING = ("track=none", "measure.warmup=1", "measure.validation=true")
ON_GPU = ("train.dist_env.backend=nccl", "measure.checkpoint=true", "train.step_scheduler.global_batch_size=2")
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
LAYOUTS = {
    "one rank": ("launch.nproc_per_node=1",),
    "two ranks that share the weights": ("launch.nproc_per_node=2", "train.step_scheduler.local_batch_size=1"),
}
STEPS, RESUMED_AFTER = 18, 9


def run(root, recipe, *overrides):
    """The record of a run, and its directory."""
    command = [sys.executable, "-m", "cctrain", f"recipe={recipe}", *KEEPING, *ON_GPU, f"run_root={root}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run_dir = Path(json.loads(done.stdout.splitlines()[-1])["run_dir"])
    return json.loads((run_dir / "run.json").read_text()), run_dir


def validated(run_dir):
    lines = (run_dir / "checkpoints" / "validation.jsonl").read_text().splitlines()
    return [json.loads(line)["val_loss"] for line in lines]


def losses(record):
    return [step["loss"] for step in record["steps"]]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(
    scope="module",
    params=[pytest.param(layout, id=name, marks=[TWO] * (name != "one rank")) for name, layout in LAYOUTS.items()],
)
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def runs(layout, recipe, tmp_path_factory):
    """With step=stock and step=graphed."""
    common = (*layout, f"measure.steps={STEPS - 1}")
    return [run(tmp_path_factory.mktemp("runs"), recipe, *common, f"step={kind}") for kind in ("stock", "graphed")]


def test_steps_are_replayed_around_them_and_of_several_lengths_where_no_ranks_have_to_agree(runs, layout):
    (_, _), (record, _) = runs
    graphs = record["graphs"]
    assert (len(graphs["lengths"]) > 1) == (layout == LAYOUTS["one rank"])
    assert graphs["eager_micro_batches"] == graphs["num_graphs"] / 2 <= len(graphs["lengths"])
    assert graphs["replayed_micro_batches"] == STEPS - graphs["eager_micro_batches"]
    assert graphs["recaptures"] == 0


def test_they_see_and_leave_the_same_model_as_between_stock_steps(runs):
    (stock, stock_dir), (graphed, graphed_dir) = runs
    assert losses(graphed) == pytest.approx(losses(stock), rel=1e-3)
    assert len(validated(graphed_dir)) == len(validated(stock_dir)) > 3
    assert validated(graphed_dir) == pytest.approx(validated(stock_dir), rel=1e-3)


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(runs, layout, recipe, tmp_path):
    (_, _), (whole, run_dir) = runs
    (saved,) = (run_dir / "checkpoints").glob(f"epoch_*_step_{RESUMED_AFTER - 1}")
    again = (*layout, f"measure.steps={STEPS - 1}", "step=graphed", f"+train.checkpoint.restore_from={saved}")
    resumed, _ = run(tmp_path, recipe, *again)
    assert [step["step"] for step in resumed["steps"]] == list(range(RESUMED_AFTER + 1, STEPS + 1))
    assert losses(resumed) == pytest.approx(losses(whole)[RESUMED_AFTER:], rel=1e-3)
