"""Many runs as one: a matrix of settings, modes and repeats, its order, its ledger, and what runs it."""
