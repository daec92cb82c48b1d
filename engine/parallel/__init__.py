"""Ordered groups of ranks and how weights and tokens are split over them."""
