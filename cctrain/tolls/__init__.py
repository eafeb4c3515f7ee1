"""The building blocks of what CC costs: one file a family of tolls, each with `can_run()` and `measure()`.

The parent (`child.py`) starts `worker.py`, which measures; only that process imports the families, and torch with them.
"""
