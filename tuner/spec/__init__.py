"""Words of the tuner: spaces of settings, machines, front ends, look-ahead, errors."""
