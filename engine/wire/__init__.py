"""What the host and its ranks say to each other, and how it travels."""
