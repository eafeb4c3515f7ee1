"""cctrain: what confidential computing costs a fine-tuning run, and why."""

__version__ = "0.1.0"
