"""The whole loop as one command: serve, tune, apply, follow the load; then on paced devices."""
