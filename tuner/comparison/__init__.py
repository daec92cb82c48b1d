"""Static plans, Shift, the ladder and the oracle on one load, by draws of it that all share."""
