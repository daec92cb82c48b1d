"""The operations of a step: FLOPs, bytes and collectives of a model under a plan."""
