"""Asking it of a live target: the open-loop driver, targets here and over HTTP, our own engine."""
