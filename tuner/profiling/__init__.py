"""Measuring this machine: operators, pieces of a model, whole engines."""
