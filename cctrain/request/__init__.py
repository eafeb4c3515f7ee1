"""What the user asked for: the command line composed, the AutoModel recipe put together and checked. No torch."""
