"""What one optimizer step does where it is not the engine's own: captured once in CUDA graphs, and replayed."""
