"""Faults thrown at a whole running system, and what must hold after each of them."""
