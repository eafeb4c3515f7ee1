"""Records of tolls, made up."""

from cctrain.tolls.record import Reading, TollsRecord

IDENTITY = {"gpu": "B300", "num_gpus": 1, "driver": "595", "cpu": "Xeon", "torch": "2.11", "cctrain": "0.1"}


def reading(name, value, unit="us", interval=None, **conditions):
    return Reading(name=name, unit=unit, value=value, interval=interval, num_blocks=7, conditions=conditions)


def record(mode, *readings, **facts):
    identity = IDENTITY | facts.pop("identity", {})
    return TollsRecord(mode=mode, identity=identity, measured_at="2026-11-21", readings=readings, **facts)


def both(*triples):
    """Records off and on of (name, off, on, unit, conditions)."""
    off = [reading(name, value, unit, **conditions) for name, value, _, unit, conditions in triples]
    on = [reading(name, value, unit, **conditions) for name, _, value, unit, conditions in triples]
    return record("off", *off), record("on", *on)
