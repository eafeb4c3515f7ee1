"""The environment that ranks are started with."""

import pytest

from cctrain.launcher import NO_MULTICAST, rank_environment


@pytest.fixture(autouse=True)
def multicast_is_unset(monkeypatch):
    for name in NO_MULTICAST:
        monkeypatch.delenv(name, raising=False)


def test_ranks_do_without_multicast_which_cc_takes_away():
    assert NO_MULTICAST.items() <= rank_environment(is_cpu=False).items()


def test_a_user_may_leave_multicast_on(monkeypatch):
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    assert rank_environment(is_cpu=False)["NCCL_NVLS_ENABLE"] == "1"


def test_under_emulated_tolls_multicast_is_off_whatever_the_user_has_set(monkeypatch):
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    assert NO_MULTICAST.items() <= rank_environment(is_cpu=False, has_tolls=True).items()
