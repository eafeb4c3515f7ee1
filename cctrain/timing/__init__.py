"""Time stamps of steps and their phases, taken without making the device wait."""
