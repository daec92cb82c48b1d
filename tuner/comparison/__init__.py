"""Static plans, Shift, the ladder and the oracle on one load, with the same draws of it."""
