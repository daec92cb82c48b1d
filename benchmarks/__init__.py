"""One script and its dated reports per question."""
