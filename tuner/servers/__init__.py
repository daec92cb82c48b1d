"""Serving systems started by a command for trials: launched, watched, loaded, never left behind."""
