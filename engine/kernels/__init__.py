"""The operations of a layer except matrix products: in torch, in Triton, and compiled for CPU."""
