"""Sending load to a live target: the open-loop driver, targets here and over HTTP, our engine."""
