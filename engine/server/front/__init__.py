"""HTTP in a separate process beside the step loop, and both ends of the connection between them."""
