"""The arms of an emulated run: which of a profile's tolls the steps of a block pay."""

from __future__ import annotations

from cctrain.emulation.blocks import ALL, OFF
from cctrain.emulation.profile import Profile

_ONLY, _WITHOUT = "only ", "without "


def arms(profile: Profile, *, is_explained: bool, num_ranks: int) -> tuple[str, ...]:
    """Plain and tolled; to explain the loss, each class of tolls alone and left out besides."""
    if not is_explained:
        return (OFF, ALL)
    classes = explained_classes(profile, num_ranks)
    return (OFF, ALL, *(_ONLY + name for name in classes), *(_WITHOUT + name for name in classes))


def explained_classes(profile: Profile, num_ranks: int) -> tuple[str, ...]:
    """Those with something to pay. One rank has no collectives."""
    return tuple(name for name in profile.classes() if name != "collective" or num_ranks > 1)


def only(name: str) -> str:
    """The arm under which one class alone is paid."""
    return _ONLY + name


def without(name: str) -> str:
    """The arm under which all but one class are paid."""
    return _WITHOUT + name


def tolls_of(profile: Profile, arm: str) -> Profile | None:
    """What `arm` pays; None for nothing."""
    if arm == OFF:
        return None
    if arm.startswith(_ONLY):
        return profile.of_classes([arm.removeprefix(_ONLY)])
    left_out = arm.removeprefix(_WITHOUT) if arm.startswith(_WITHOUT) else None
    return profile.of_classes([name for name in profile.classes() if name != left_out])
