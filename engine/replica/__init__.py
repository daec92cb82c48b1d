"""One scheduler, one executor, one thread: the loop that turns requests into tokens."""
