"""A micro-batch's way to the device, beside work that is queued and not done."""

import pytest
import torch

from cctrain.steps.staging import Staging

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

ROWS = 8192
_CYCLES = 200_000_000
"""A tenth of a second: longer than all that is queued behind it takes the host."""


def test_a_way_made_behind_queued_work_takes_no_memory_that_the_work_still_reads():
    with torch.cuda.stream(torch.cuda.Stream()):
        read = [torch.ones(ROWS, dtype=torch.int64, device="cuda") for _ in range(6)]
        torch.cuda._sleep(_CYCLES)
        copies = [one.clone() for one in read]
        del read  # to the allocator, which gives it to whoever asks next on this stream
        staging = Staging({"x": torch.zeros(ROWS, dtype=torch.int64)})
        staging.send({"x": torch.full((ROWS,), 7)})
        torch.cuda.synchronize()
    assert [int(copy.sum()) for copy in copies] == [ROWS] * 6
    assert staging.batch["x"].unique().tolist() == [7]


def test_batches_arrive_in_turn_though_the_host_is_ahead():
    example = {"x": torch.zeros(ROWS, dtype=torch.int64)}
    with torch.cuda.stream(torch.cuda.Stream()):
        staging, seen = Staging(example), []
        torch.cuda._sleep(_CYCLES)
        for number in range(5):
            staging.send({"x": torch.full((ROWS,), number)})
            seen.append(staging.batch["x"].clone())
        torch.cuda.synchronize()
    assert [one.unique().tolist() for one in seen] == [[number] for number in range(5)]
