"""The families of tolls, in the order in which they are measured. Each is a module of this package."""

from __future__ import annotations

from typing import Protocol

from cctrain.tolls.record import Reading
from cctrain.tolls.sampling import Switch

HOST = ("host", "aes_gcm")
DEVICE = ("matmul", "launch", "graphs", "events", "copies", "issue", "allocation", "bulk_load")
SEVERAL_DEVICES = ("collectives",)
"""Measured by one rank a GPU."""
ALL = HOST + DEVICE + SEVERAL_DEVICES


class Family(Protocol):
    """What a family's module offers."""

    def can_run(self) -> str | None:
        """None, or why this machine cannot measure it."""

    def measure(self, switch: Switch | None = None) -> list[Reading]:
        """Takes some seconds, whatever the machine's speed; with `switch` twice as many, for with and without tolls."""
