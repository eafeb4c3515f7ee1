"""The tolls of confidential computing on a GPU without it: profiles, their injection, and what an emulated run says.

from cctrain.emulation import load_profile, tolls

with tolls(load_profile("b300")):  # in a process started with `python -m cctrain emulate -- python ...`
    step()
"""

from cctrain.emulation.injector import tolls
from cctrain.emulation.profile import load_profile

__all__ = ["load_profile", "tolls"]
