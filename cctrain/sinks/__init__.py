"""Where a run is shown as it goes: copies of the run directory, which stays the product.

A sink is one file, `NAME.py`, with `PACKAGE` (what it imports, inside its functions only), `INSTALL` (how to get it),
`is_wanted(environment)` and `open_sink(say)`, which gives a `Sink` (sink.py); a line in `conf/track/` makes it a choice
of `track=`. Each runs in a process of its own (child.py) that reads the samples files: whatever W&B does or does not
do, no rank and no step knows of it.
"""
