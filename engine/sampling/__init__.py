"""Logits to token ids: rules, edits, log probabilities, and the exchange over ranks."""
