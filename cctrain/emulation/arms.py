"""The arms of an emulated run: which of a profile's tolls the steps of a block pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cctrain.emulation.blocks import ALL, OFF
from cctrain.emulation.profile import CLASSES, Profile

CUPTI, OPERATORS = "cupti", "operators"
"""Where tolls are paid and crossings counted: by inject.c's library, or by its stand-in on a CPU."""
_PAYABLE: Mapping[str, tuple[str, ...]] = {CUPTI: tuple(CLASSES), OPERATORS: ("launch",)}
_ONLY, _WITHOUT = "only ", "without "


def arms(
    profile: Profile, *, is_explained: bool, num_ranks: int, counted_by: str = CUPTI, has_graphs: bool = False
) -> tuple[str, ...]:
    """Plain and tolled; to explain the loss, each class of tolls alone and left out besides."""
    if not is_explained:
        return (OFF, ALL)
    classes = explained_classes(profile, num_ranks, counted_by, has_graphs=has_graphs)
    return (OFF, ALL, *(_ONLY + name for name in classes), *(_WITHOUT + name for name in classes))


def explained_classes(
    profile: Profile, num_ranks: int, counted_by: str = CUPTI, *, has_graphs: bool = False
) -> tuple[str, ...]:
    """Those with something to pay, where it can be paid. One rank has no collectives, and a stock step launches no
    graph: an arm that pays nothing would add its noise to what is unexplained."""
    payable = set(_PAYABLE[counted_by]) - ({"collective"} if num_ranks == 1 else set())
    payable -= set() if has_graphs else {"graph_launch"}
    return tuple(name for name in profile.classes() if name in payable)


def unpaid_note(profile: Profile, counted_by: str) -> str | None:
    """What is to be said of a profile that charges nothing where it would be paid; None where it charges something."""
    if set(profile.classes()) & set(_PAYABLE[counted_by]):
        return None
    return f"the profile {profile.name} charges nothing here: what is seen under it is as without tolls, but for noise"


def only(name: str) -> str:
    """The arm under which one class alone is paid."""
    return _ONLY + name


def without(name: str) -> str:
    """The arm under which all but one class are paid."""
    return _WITHOUT + name


def tolls_of(profile: Profile, arm: str) -> Profile | None:
    """What `arm` pays; None for nothing."""
    return None if arm == OFF else profile.of_classes(paid(arm, profile.classes()))


def paid(arm: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Which of `classes` are paid under `arm`."""
    if arm.startswith(_ONLY):
        return (arm.removeprefix(_ONLY),)
    return tuple(name for name in classes if arm not in (OFF, without(name)))
