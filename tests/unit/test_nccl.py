"""NCCL's own word on CC, and whether it is the driver's."""

import pytest

from cctrain.platform.nccl import contradiction, nccl_cc_line


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("h:12:34 [0] NCCL INFO CC On, workFifoBytes 0", {"cc": "on", "work_fifo_bytes": 0}),
        ("h:12:34 [0] NCCL INFO CC Off, workFifoBytes 1048576", {"cc": "off", "work_fifo_bytes": 1 << 20}),
        ("h NCCL INFO CC Off, Multi-GPU CC On, workFifoBytes 8", {"cc": "on", "work_fifo_bytes": 8}),
        ("h NCCL INFO CC Off, Multi-GPU CC Off, workFifoBytes 8", {"cc": "off", "work_fifo_bytes": 8}),
        ("loss of CC On, a question, workFifoBytes", None),
    ],
)
def test_nccls_own_word_is_read_from_a_log(line, word):
    log = f"step 1\nh NCCL INFO Bootstrap: Using eth0\n{line}\nh NCCL INFO Init COMPLETE\n"
    assert nccl_cc_line(log) == word


@pytest.mark.parametrize(
    ("word", "mode", "facts", "says"),
    [
        ("on", "on", {}, None),
        ("off", "off", {}, None),
        ("off", "emulated", {}, None),
        ("on", "unknown", {}, None),
        (None, "on", {}, None),
        ("on", "off", {}, "NCCL says that CC is on (logs/rank0.log), the driver that it is off"),
        ("on", "emulated", {}, "NCCL says that CC is on (logs/rank0.log), the driver that it is off"),
        ("off", "on", {"bounce_buffer": True}, "NCCL says that CC is off (logs/rank0.log), the driver that it is on"),
        ("off", "on", {"ppcie": True}, None),  # older NCCL does not know of it
        ("on", "off", {"nvle": True}, None),  # newer NCCL counts it
        ("on", "off", {"ppcie": False, "nvle": False}, "NCCL says that CC is on"),
    ],
)
def test_nccls_word_is_held_against_the_mode(word, mode, facts, says):
    found = contradiction(word and {"cc": word}, mode, facts)
    assert found is None if says is None else found.startswith(says)
