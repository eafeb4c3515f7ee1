"""What this machine is, observed in the parent before anything is started. One source a file."""
