"""Runs to a comparison: which arms, which groups, what may be compared, and how much throughput is kept."""
