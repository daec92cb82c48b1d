"""Words of the tuner: settings and their space, machines, front ends, look-ahead, errors."""
