"""Messages between the host and its ranks, and how they are sent."""
