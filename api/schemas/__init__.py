"""What REST reads and writes, as pydantic models."""
