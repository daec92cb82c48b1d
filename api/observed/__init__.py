"""Servers that are not ours: looked at by their address, and restarted where that is allowed."""
