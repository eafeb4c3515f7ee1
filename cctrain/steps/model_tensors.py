"""Where a model's tensors lie in memory, which a graph knows by their addresses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

_Place = tuple[str, Mapping[str, Any], str]
"""A tensor's whole name, and where it is looked up each time, as another may have taken its place."""


class ModelTensors:
    """The parameters and buffers of `model`, whatever stands in their names; `is_sharded`: ranks hold parts of it.

    Then the tensors themselves are kept: FSDP2 has whole parameters in the names of the sharded ones at times, and of
    these only what they hold may move.
    """

    def __init__(self, model: torch.nn.Module, *, is_sharded: bool) -> None:
        self._places = list((_kept if is_sharded else _places)(model))

    def addresses(self) -> list[int]:
        """Of each, in one order."""
        return [_address(owner.get(key)) for _, owner, key in self._places]

    def elsewhere(self, addresses: Sequence[int]) -> list[str]:
        """The names of those that do not lie at `addresses` any more."""
        places = zip(self._places, addresses, self.addresses(), strict=True)
        return [name for (name, *_), before, now in places if now != before]


def _kept(model: torch.nn.Module) -> Iterator[_Place]:
    held = dict([*model.named_parameters(), *model.named_buffers()])
    yield from ((name, held, name) for name in held)


def _places(model: torch.nn.Module) -> Iterator[_Place]:
    for path, module in model.named_modules():
        for owner in (module._parameters, module._buffers):  # noqa: SLF001 - getattr would take five times as long
            names = [name for name, tensor in owner.items() if tensor is not None]
            yield from ((f"{path}.{name}".lstrip("."), owner, name) for name in names)


def _address(tensor: torch.Tensor | None) -> int:
    """Of a sharded tensor that of what this rank holds, without a view made of it in each step."""
    return 0 if tensor is None else getattr(tensor, "_local_tensor", tensor).data_ptr()
