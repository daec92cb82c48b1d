"""The time of a step: fitted coefficients, their residual, and the files that keep them."""
