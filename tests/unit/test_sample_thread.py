"""The thread that writes samples beside the training thread."""

import threading

import pytest

from cctrain.samples import SampleFile, SampleThread


def test_of_two_things_that_went_wrong_the_first_is_told(tmp_path):
    errors = iter([RuntimeError("the device is lost"), RuntimeError("closed in its wake")])
    has_failed = threading.Event()

    def finished():
        has_failed.set()
        raise next(errors)

    thread = SampleThread(finished, SampleFile(tmp_path / "rank0.jsonl"), lambda: None)
    assert has_failed.wait(timeout=30)
    thread.close()
    with pytest.raises(RuntimeError, match="the device is lost"):
        thread.check()


def test_what_is_left_is_written_when_it_is_closed(tmp_path):
    lines = iter([[{"step": 1}], []])
    thread = SampleThread(lambda: next(lines, []), SampleFile(tmp_path / "rank0.jsonl"), lambda: None)
    thread.close()
    assert (tmp_path / "rank0.jsonl").read_text() == '{"step":1}\n'
