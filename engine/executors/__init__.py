"""Where steps run: in process, one process per rank, or simulated."""
