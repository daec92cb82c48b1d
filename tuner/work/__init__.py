"""What a step costs in operations: FLOPs, bytes and collectives of a model under a plan."""
