"""One device's half of a step: receive, prepare, run, answer."""
