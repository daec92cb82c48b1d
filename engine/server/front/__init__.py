"""HTTP in a process of its own beside the step loop, and both ends of the line between them."""
