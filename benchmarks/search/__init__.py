"""Which sampler finds the best settings in the fewest evaluations."""
