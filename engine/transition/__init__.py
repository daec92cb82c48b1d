"""From one plan to the next: which replicas start and leave, where, when, at what price."""
