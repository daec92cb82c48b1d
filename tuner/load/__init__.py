"""Asking it of a live target: the open-loop driver, the targets, an engine of our own."""
