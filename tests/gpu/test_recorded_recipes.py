"""Recipes whose step is recorded on one GPU with its layers compiled: small models by the recipes of large ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

STEPS, WARMUP = 12, 3
TINY_GEMMA = Path(__file__).resolve().parents[2] / "recipes" / "models" / "tiny-gemma-4"
GEMMA = (
    *("weights=random", f"train.model.config.pretrained_model_name_or_path={TINY_GEMMA}", "data.seq_len=512"),
    "train.step_scheduler.global_batch_size=1",
)
LLAMA = (
    *("recipe=llama8b_peft", "weights=random", "data=synthetic", "data.seq_len=256"),
    *("+train.model.config.num_hidden_layers=2", "train.step_scheduler.global_batch_size=4"),
)
CASES = {
    "gemma, images": ("recipe=gemma31b_peft", "data=synthetic", *GEMMA),
    "gemma, text": ("recipe=gemma31b_peft", "data=jsonl", *GEMMA),
    "gemma, full": ("recipe=gemma31b_sft", "data=synthetic", *GEMMA),
    "llama, checkpointed": (*LLAMA, "+train.distributed.activation_checkpointing=true"),
}


def run(folder, *overrides):
    """The record of a finished run."""
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"question": "Why?", "answer": "so " * 600}) + "\n" for _ in range(40)))
    command = [
        *(sys.executable, "-m", "cctrain", *overrides, "track=none", "launch.nproc_per_node=1"),
        *(f"measure.warmup={WARMUP}", f"measure.steps={STEPS}", f"run_root={folder}"),
        *([f"data.path={text}"] if "data=jsonl" in overrides else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run_dir = Path(json.loads(done.stdout.splitlines()[-1])["run_dir"])
    return json.loads((run_dir / "run.json").read_text())


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def records(request, tmp_path_factory):
    """Of both steps."""
    return [run(tmp_path_factory.mktemp("run"), *request.param, f"step={kind}") for kind in ("stock", "graphed")]


def test_each_step_but_the_first_is_replayed_and_nothing_left_uncompiled(records):
    _, graphed = records
    graphs = graphed["graphs"]
    assert graphs["compiled"]
    assert (graphs["eager_updates"], graphs["left_uncompiled"]) == (1, 0)
    assert graphs["replayed_micro_batches"] == (STEPS + WARMUP - 1) * graphs["eager_micro_batches"]


def test_each_step_has_about_the_loss_of_stock(records):
    """Layers that are compiled round less."""
    stock, graphed = ([step["loss"] for step in record["steps"]] for record in records)
    assert graphed == pytest.approx(stock, abs=0.05)
