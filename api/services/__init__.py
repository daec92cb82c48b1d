"""What the endpoints call: one function per use, all inside the caller's unit of work."""
