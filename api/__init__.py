"""The control plane: REST, durable jobs, the controller loop and the command line."""
