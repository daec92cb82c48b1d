"""What a layer does besides its products: in torch, in Triton, and compiled for a CPU."""
