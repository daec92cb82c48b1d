"""A layer's operations as Triton kernels, over one packed table per step."""
