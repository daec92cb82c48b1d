"""Readings of CUDA devices from the driver: power, energy, clocks, links. None without a driver."""
