"""What a rank's last line says of the error that ended it."""

import pytest

from cctrain.worker import explained


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a shape does not fit\nand more of it", "RuntimeError: a shape does not fit"),
        (
            "backend='inductor' raised:\nAssertionError: so it is\n",
            "RuntimeError: backend='inductor' raised: AssertionError: so it is",
        ),
        ("the following:\n\n  Missing key", "RuntimeError: the following: Missing key"),
        ("nothing follows:", "RuntimeError: nothing follows:"),
        ("", "RuntimeError: no message"),
    ],
)
def test_a_rank_says_the_first_line_and_what_it_announces(text, message):
    assert explained(RuntimeError(text)) == {"kind": "RuntimeError", "message": message}


def test_out_of_memory_is_told_as_such_with_what_to_lower():
    found = explained(MemoryError())
    assert found["kind"] == "out_of_memory"
    assert "train.step_scheduler.local_batch_size" in found["message"]
