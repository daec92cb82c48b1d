"""Work of a request that takes long or much: done in a process of its own, under limits."""
