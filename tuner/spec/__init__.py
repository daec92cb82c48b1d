"""Values that the tuner shares: spaces of settings, machines, front ends, look-ahead, errors."""
