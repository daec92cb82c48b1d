"""Which mode one step runs in: threshold, table of measured times, pace."""
