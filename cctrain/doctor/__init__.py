"""What would go wrong with a recipe on this machine, judged before anything runs. No torch, no GPU, no files."""
