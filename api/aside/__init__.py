"""What a request asks for that takes long or much: done in a process of its own, under limits."""
