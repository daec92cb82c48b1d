"""The functions behind the endpoints: one per use, all inside the caller's unit of work."""
