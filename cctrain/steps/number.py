"""A number that the host does not know yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class OnDevice:
    """Stands for a Python number in arithmetic with tensors, its value being on the device: what is recorded with it
    computes with the value of the replay.

    To the host it equals nothing, so that a question like `number == 0` is no wait for the device.
    """

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch's call with the value in place of the number."""
        plain = {name: _value(value) for name, value in (kwargs or {}).items()}
        return func(*map(_value, args), **plain)


def _value(argument: Any) -> Any:
    return argument.value if isinstance(argument, OnDevice) else argument
