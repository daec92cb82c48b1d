"""Commands that start settings on serving systems: one exporter per system."""
