"""Servers of other systems: observed by their address, and restarted where that is allowed."""
