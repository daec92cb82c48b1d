"""What the driver says of CUDA devices: power, energy, clocks, links. Absent without one."""
