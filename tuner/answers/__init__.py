"""Questions that a notebook or a command asks, and answers as both show them."""
