"""Questions as a notebook or a command asks them, and answers as both show them."""
