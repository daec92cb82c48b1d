"""This engine beside others on one checkpoint, each asked in turn."""
