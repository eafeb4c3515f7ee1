"""What became of a trial, by the ledger and by what its ranks left on disk."""

import json

import pytest

from cctrain.campaign.ledger import Ledger
from cctrain.report.tuned import Progress
from cctrain.request.compose import compose_config
from cctrain.tune.point import FAILED, OUT_OF_MEMORY
from cctrain.tune.request import checked
from cctrain.tune.trials import Trials

TINY = ("recipe=tiny_llama_peft", "data=synthetic", "data.seq_len=64", "launch.nproc_per_node=2", "track=none")
KILLED = "rank 0 was killed"
"""What a record says whose other rank was the one that ran out of memory."""


@pytest.fixture
def failed(tmp_path):
    """The outcome of a trial of two ranks that failed, by the last lines of its ranks."""

    def observed(*last_lines, why=KILLED):
        run_dir = tmp_path / "20261124-000000-tiny-off-abcd1234"
        (run_dir / "samples").mkdir(parents=True)
        for rank, last in enumerate(last_lines):
            lines = [{"event": "start", "rank": rank}, {"step": 1}, last]
            (run_dir / "samples" / f"rank{rank}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        request = checked([*TINY, "tune.over=[micro_batch]", f"run_root={tmp_path}"])
        with Ledger(request.ledger, verb="tune") as ledger:
            trials = Trials(request, ledger, Progress(8, 0))
            key, _ = trials.named(request.problem.base)
            ledger.append("begin", key=key, token="abcd1234")
            ledger.append("end", key=key, token="abcd1234", outcome="failed", run=run_dir.name, why=why)
            return trials.run(request.problem.base)

    return observed


def test_a_trial_is_told_where_its_run_goes_whatever_the_directory_is_called(tmp_path):
    odd = tmp_path / "runs (1), of [May]"
    request = checked([*TINY, f"run_root='{odd}'"])
    with Ledger(request.ledger, verb="tune") as ledger:
        trials = Trials(request, ledger, Progress(8, 0))
        *_, last = trials._campaign.command(trials.named(request.problem.base)[1])
    assert compose_config(["recipe=tiny_llama_peft", last]).run_root == str(odd)


def test_a_trial_ran_out_of_memory_whichever_rank_it_was(failed):
    found = failed({"step": 2}, {"event": "error", "kind": "out_of_memory", "message": "out of GPU memory"})
    assert (found.outcome, found.why) == (OUT_OF_MEMORY, KILLED)


@pytest.mark.parametrize("message", ["a shape does not fit", "no such key: out_of_memory"])
def test_a_rank_that_failed_of_something_else_did_not_run_out_of_memory(failed, message):
    found = failed({"step": 2}, {"event": "error", "kind": "ValueError", "message": message})
    assert found.outcome == FAILED


@pytest.mark.parametrize("why", ["rank 1: out of GPU memory: lower", "NotCapturableError: out of GPU memory while"])
def test_a_run_whose_failure_says_so_ran_out_of_memory(failed, why):
    assert failed({"step": 2}, {"step": 2}, why=why).outcome == OUT_OF_MEMORY
