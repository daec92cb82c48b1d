"""One command for a machine with a GPU: the CUDA path against its references and its limits."""
