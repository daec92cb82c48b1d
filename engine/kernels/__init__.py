"""One file per operation: torch reference and Triton version, same signature."""
