"""Submitting the command to run on other machines: one file a system, each saying what it would submit."""
