"""What the description shows: one request and one answer of each kind, as they really are."""
