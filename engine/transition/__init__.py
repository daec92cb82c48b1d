"""From one plan to the next: which replicas start and leave, where, in which order, at what price."""
